"""A session that goes on with another model: each tokenizer's ids stand beside the others', and come back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kvchat.backends.base import Options
from kvchat.backends.local import LocalBackend
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.config import Config, load_config
from tests.tiny import SPECIAL, tiny_folder


def byte_tokenizer(path: Path) -> None:
    """Another tokenizer: one token a byte."""
    names = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path))


@pytest.fixture
def configs(tmp_path: Path) -> tuple[Config, Config]:
    """Two models that share no tokenizer."""
    first, second = (tiny_folder(tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second")))
    byte_tokenizer(second / "tokenizer.json")
    own = {f"paths.{name}": tmp_path / name for name in ("models", "cache", "data")}
    flags = {"model.dtype": "float32", "cache.ram": "20MB", "cache.disk": "20MB", **own}
    environ = {"KVCHAT_CONFIG": str(tmp_path / "none.toml")}
    config = load_config(flags | {"model.name": str(first)}, environ=environ)
    return config, replace(config, model=replace(config.model, name=str(second)))


@pytest.fixture
def session(configs: tuple[Config, Config], tmp_path: Path) -> Iterator[Session]:
    store = Store(tmp_path / "kvchat.db")
    session = Session(LocalBackend(configs[0]), Options(max_tokens=8, temperature=0), store=store)
    yield session
    session.close()


def test_ids_of_both_tokenizers_stand_beside_each_other_and_come_back(
    session: Session, configs: tuple[Config, Config]
) -> None:
    session.ask("one")
    assert session.last
    first = session.last
    session.change_model("second", LocalBackend(configs[1]))
    session.ask("two")
    assert session.last.tokenizer != first.tokenizer
    kept = session.store.token_ids(session.path[0].id)
    assert kept[first.tokenizer] == first.completion
    assert set(kept) == {first.tokenizer, session.last.tokenizer}
    session.ask("three")
    prompt = session.last.prompt
    encoded = kept[session.last.tokenizer]
    assert any(prompt[i : i + len(encoded)] == encoded for i in range(len(prompt)))
    assert session.last.usage.cached_tokens >= session.path[1].answer.usage.total_tokens - 1  # type: ignore[union-attr]

    session.change_model("first", LocalBackend(configs[0]))
    session.ask("four")
    prompt = session.last.prompt
    start = len(first.prompt)
    assert prompt[:start] == first.prompt
    assert prompt[start : start + len(first.completion)] == first.completion
    assert session.path[0].answer == replace(first, prompt=())
    assert set(session.store.token_ids(session.path[1].id)) == set(kept)


def test_a_resumed_session_has_the_ids_of_the_model_it_goes_on_with(
    session: Session, configs: tuple[Config, Config]
) -> None:
    session.ask("one")
    session.change_model("second", LocalBackend(configs[1]))
    session.ask("two")
    other = Session(session.backend, session.options, store=session.store)
    other.resume()
    other.ask("three")
    assert other.last
    assert session.last
    assert other.last.prompt[: len(session.last.prompt)] == session.last.prompt
    assert other.tokenizer == session.tokenizer
