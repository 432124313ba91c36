"""Backends that tests share: of the tiny model, and of one for each kind of chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kvchat.backends.local import LocalBackend
from kvchat.config import Config
from tests.models.chat_templates import SAMPLES, VOCABULARY, Sample, byte_tokenizer, metaspace_tokenizer
from tests.tiny import tiny_model

BY_NAME = {sample.name: sample for sample in SAMPLES}


@pytest.fixture
def backend(make_config: Callable[..., Config]) -> Iterator[LocalBackend]:
    backend = LocalBackend(make_config())
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sample], Path]:
    """A model's folder for each template; the weights are the same, and end no answer by themselves."""
    weights = tmp_path_factory.mktemp("weights")
    loaded = tiny_model(vocab_size=VOCABULARY, max_position_embeddings=4096)
    with torch.no_grad():
        loaded.model.lm_head.weight[:10] = 0
        loaded.model.lm_head.weight[-10:] = 0
    loaded.model.save_pretrained(weights)

    def folder_of(sample: Sample) -> Path:
        folder = weights.with_name(sample.name)
        if not folder.exists():
            folder.mkdir()
            for path in weights.iterdir():
                (folder / path.name).symlink_to(path)
            build = metaspace_tokenizer if sample.is_metaspace else byte_tokenizer
            build(sample.special, sample.plain).save(str(folder / "tokenizer.json"))
            names = {"bos_token": sample.bos, "eos_token": sample.eos}
            (folder / "tokenizer_config.json").write_text(json.dumps(names))
            (folder / "chat_template.jinja").write_text(sample.source)
        return folder

    return folder_of


@pytest.fixture
def open_backend(
    folders: Callable[[Sample], Path], make_config: Callable[..., Config]
) -> Iterator[Callable[..., LocalBackend]]:
    opened: list[LocalBackend] = []

    def open_(name: str, **settings: object) -> LocalBackend:
        config = make_config(model__name=str(folders(BY_NAME[name])), **{"cache__disk": "0"} | settings)
        opened.append(LocalBackend(config))
        return opened[-1]

    yield open_
    for backend in opened:
        backend.close()
