"""Model folders that we write ourselves: whole or not at all, stamped, and written by one process at a time.

A stamp (kvchat.json) remembers what a folder was made from and what its files were; no format of any.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import read_object
from kvchat.models.gguf.parts import located, named_parts
from kvchat.models.sources.contents import Contents, file_xxh3

FORMAT_VERSION = 2
"""Rises when what an import writes changes; folders of another version are imported anew."""

STAMP_NAME = "kvchat.json"
PACKED_NAME = "packed"
"""The folder of integer weights made from models, under the models' root."""
UNFINISHED = ".new"
"""What the name of a file ends with while it is written."""
_LOCK_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class FileStamp:
    """One file as it was: size in bytes, xxh3-128 as hex."""

    size: int
    xxh3: str

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """The stamp of a file as it is now."""
        return cls(path.stat().st_size, file_xxh3(path))

    @classmethod
    def from_json(cls, stamp: Mapping[str, Any]) -> FileStamp:
        """One that was written as JSON."""
        return cls(int(stamp["size"]), str(stamp["xxh3"]))

    def is_kept_by(self, path: Path, contents: Contents) -> bool:
        """Whether the file still has the same bytes."""
        try:
            return path.is_file() and path.stat().st_size == self.size and contents.xxh3(path) == self.xxh3
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a folder was made from, with the further parts of that by name, and its own files by name."""

    source_path: str
    source: FileStamp
    files: Mapping[str, FileStamp]
    parts: Mapping[str, FileStamp] = field(default_factory=dict)

    def is_of(self, source: Path, contents: Contents) -> bool:
        """Whether the file `source`, with the parts beside it, still has the same bytes."""
        return self.source.is_kept_by(source, contents) and all(
            part.is_kept_by(source.with_name(name), contents) for name, part in self.parts.items()
        )


def packed_stem(folder: Path) -> str:
    """What the names of the files begin with that hold a model folder's integer weights."""
    import xxhash

    return xxhash.xxh3_64_hexdigest(os.fsencode(folder.resolve()))


def packed_files(root: Path, stem: str) -> list[Path]:
    """The files of integer weights whose names begin with `stem`, under the models' root: half-written ones too."""
    home = root / PACKED_NAME
    patterns = (f"{stem}-*.safetensors", f".{stem}-*", f".{stem}.lock")
    return sorted(path for pattern in patterns for path in home.glob(pattern))


def read_stamp(folder: Path) -> Stamp | None:
    """A folder's stamp; None when there is none of this version, whatever stands there instead."""
    path = folder / STAMP_NAME
    try:
        if path.is_symlink() or folder.is_symlink():  # we make no links: somebody else's lead anywhere
            return None
        content = read_object(path)
        if content["format"] != FORMAT_VERSION:
            return None
        files, parts = (
            {str(name): FileStamp.from_json(stamp) for name, stamp in stamps.items()}
            for stamps in (content["files"], content.get("parts", {}))
        )
        return Stamp(str(content["source_path"]), FileStamp.from_json(content["source"]), files, parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelUnavailableError):
        return None


def is_whole(folder: Path, contents: Contents) -> bool:
    """Whether the folder holds every file as it was written, itself and not as a link to elsewhere."""
    stamp = read_stamp(folder)
    return stamp is not None and all(
        Path(name).name == name
        and not (folder / name).is_symlink()
        and file.is_kept_by(folder / name, contents)
        for name, file in stamp.files.items()
    )


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the right to write `folder`; what dead processes left half-written beside it is removed."""
    from filelock import FileLock, Timeout

    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=_LOCK_TIMEOUT_S):
            _clear_up(folder)
            yield
    except Timeout as error:
        remedy = "wait for it or end it"
        raise ModelUnavailableError(f"another kvchat is still writing {folder}", remedy) from error
    except OSError as error:
        remedy = "free some space or set KVCHAT_MODELS to another folder"
        raise ModelUnavailableError(f"can't write {folder} ({error})", remedy) from error


def put_back(parent: Path) -> None:
    """Put the folders under `parent` in their places again that are lost because somebody died between two renames."""
    for leftover in sorted(parent.glob(".*.new-*")):
        name = leftover.name[1:].rpartition(".new-")[0]
        if (leftover / name).is_dir() and not (parent / name).exists():
            with exclusive(parent / name):
                pass  # which puts it back


def _clear_up(folder: Path) -> None:
    """Remove what a dead process left beside `folder`; what it had taken out of the way is put back first."""
    leftovers = sorted(folder.parent.glob(f".{folder.name}.new-*"))
    for leftover in leftovers:
        if (leftover / folder.name).is_dir() and not folder.exists():
            (leftover / folder.name).rename(folder)
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


def install(folder: Path, source: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a new folder, then put it in the place of `folder`; only inside `exclusive(folder)`.

    `source` is the file that it is made from. Whatever `fill` raises, the old folder stays as it was.
    """
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
    try:
        fill(new)
        _write_stamp(new, source)
        _flush(new)
        _exchange(folder, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _flush_folder(folder.parent)


def _write_stamp(folder: Path, source: Path) -> None:
    files = {path.name: FileStamp.of(path) for path in sorted(folder.iterdir())}
    parts = {path.name: FileStamp.of(path) for path in named_parts(source)[1:]}
    content = {
        "format": FORMAT_VERSION,
        "source_path": str(located(source)),
        "source": asdict(files.get(source.name) or FileStamp.of(source)),
        "files": {name: asdict(stamp) for name, stamp in files.items()},
        "parts": {name: asdict(stamp) for name, stamp in parts.items()},
    }
    (folder / STAMP_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _exchange(folder: Path, new: Path) -> None:
    """Rename, with the old folder out of the way first: a folder can't be renamed onto a full one.

    Whoever dies between the two renames leaves the old one in its grave, from where the next one takes it back.
    """
    if not folder.exists():
        new.rename(folder)
        return
    grave = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
    folder.rename(grave / folder.name)
    try:
        new.rename(folder)
    except OSError:
        (grave / folder.name).rename(folder)
        raise
    shutil.rmtree(grave, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
