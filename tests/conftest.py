from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvchat.config import Config, load_config
from tests.tiny import tiny_folder


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context is so long that no answer ends before a test does something to it."""
    return tiny_folder(tmp_path_factory.mktemp("model") / "long", max_position_embeddings=30_000)


@pytest.fixture
def make_config(tiny_path: Path, tmp_path: Path) -> Callable[..., Config]:
    """Settings for the tiny model with every folder of its own; `cache__mode="off"` sets `cache.mode`."""

    def make(**flags: Any) -> Config:
        own = {f"paths.{name}": tmp_path / name for name in ("models", "cache", "data")}
        named = {key.replace("__", "."): value for key, value in flags.items()}
        base = {
            "model.name": str(tiny_path),
            "model.dtype": "float32",
            "cache.disk": "100MB",
            "cache.ram": "50MB",
        }
        return load_config(base | own | named, environ={"KVCHAT_CONFIG": str(tmp_path / "none.toml")})

    return make
