"""Every prompt that is shipped, answered by the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from kvchat.backends.base import Options
from kvchat.backends.local import LocalBackend
from kvchat.chat.session import Session
from kvchat.config import load_config
from kvchat.prompts.lint import Measure, lint
from kvchat.prompts.prompt import Shelf, read_prompt
from kvchat.prompts.shelves import shipped_folder
from tests.test_embedded_model import MODELS

PATHS = sorted(shipped_folder().glob("*.md"))


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBackend]:
    folder = tmp_path_factory.mktemp("kv")
    flags = {"paths.cache": folder, "paths.models": MODELS, "cache.ram": "300MB", "cache.disk": "300MB"}
    backend = LocalBackend(load_config(flags, environ={"KVCHAT_CONFIG": str(folder / "none.toml")}))
    yield backend
    backend.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_shipped_prompt_is_clean_answered_and_cached(backend: LocalBackend, path: Path) -> None:
    prompt = read_prompt(path, Shelf.SHIPPED)
    assert lint(prompt, Measure(backend.count, "tokens")) == []
    system = prompt.render({}, datetime.now())
    num_tokens = backend.count(system)
    for number, question in enumerate(("I lost my keys at the station.", "The shop closes at five.")):
        options = Options(temperature=0, max_tokens=24)
        session = Session(backend, options, system, model="smollm2-135m")
        assert session.ask(question).strip()
        assert session.last
        if number:
            assert session.last.usage.cached_tokens >= num_tokens, "the second use computes none of it"
