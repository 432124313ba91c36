from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["KVCHAT_SHARE"] = "off"  # what a test starts ends with it; those of shared engines say otherwise
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # as many run at a time as there are cores: more threads wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from kvchat.config import Config
from tests.tiny import tiny_config, tiny_folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the sweep of families computes: cpu, cuda or mps")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device that tests of whole families run on."""
    return str(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context is so long that no answer ends before a test does something to it."""
    return tiny_folder(tmp_path_factory.mktemp("model") / "long", max_position_embeddings=30_000)


@pytest.fixture
def make_config(tiny_path: Path, tmp_path: Path) -> Callable[..., Config]:
    """Settings for the tiny model in folders of this test, as `tiny_config` takes them."""

    def make(**flags: Any) -> Config:
        return tiny_config(tiny_path, tmp_path, **flags)

    return make
