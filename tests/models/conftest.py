"""A whole tiny model folder, an empty models folder and a hub, for the tests of names and files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

from kvchat.models.gguf.checkpoint import GgufCheckpoint
from kvchat.models.gguf.importing import write_model
from kvchat.models.gguf.parts import read_gguf
from kvchat.models.sources.catalog import silent
from tests.models.hub_server import HubServer, serving
from tests.models.tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder, to be copied before it is damaged."""
    base = tmp_path_factory.mktemp("tiny")
    write_gguf(base / "tiny.gguf")
    (base / "model").mkdir()
    write_model(read_gguf(base / "tiny.gguf"), base / "model", silent)
    checkpoint = GgufCheckpoint.open(base / "tiny.gguf")
    tensors = {name: checkpoint.get(name) for name in checkpoint.names}
    save_file(tensors, base / "model" / "model.safetensors", metadata={"format": "pt"})
    return base / "model"


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    with serving() as server:
        yield server
