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
from dataclasses import asdict, dataclass
from pathlib import Path

from kvchat.errors import ModelUnavailableError

FORMAT_VERSION = 1
"""Rises when what an import writes changes; folders of another version are imported anew."""

STAMP_NAME = "kvchat.json"
PACKED_NAME = "packed"
"""The folder of integer weights made from models, under the models' root."""
_HASH_CHUNK_BYTES = 1 << 22
_LOCK_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class FileStamp:
    """One file as it was: size in bytes, time of its last change in ns, xxh3-128 as hex."""

    size: int
    mtime_ns: int
    xxh3: str

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """The stamp of a file as it is now."""
        state = path.stat()
        return cls(state.st_size, state.st_mtime_ns, file_xxh3(path))

    def is_kept_by(self, path: Path) -> bool:
        """Whether the file is still the same; it is only read when its time differs."""
        try:
            state = path.stat()
        except OSError:
            return False
        if state.st_size != self.size:
            return False
        return state.st_mtime_ns == self.mtime_ns or file_xxh3(path) == self.xxh3


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a folder was made from, and its files by name."""

    source_path: str
    source: FileStamp
    files: Mapping[str, FileStamp]


def file_xxh3(path: Path) -> str:
    """The xxh3-128 of a file's bytes, as hex."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def packed_stem(folder: Path) -> str:
    """What the names of the files begin with that hold a model folder's integer weights."""
    import xxhash

    return xxhash.xxh3_64_hexdigest(os.fsencode(folder.resolve()))


def packed_files(root: Path, folder: Path) -> list[Path]:
    """The integer weights that are kept of a model's folder under the models' root."""
    return sorted((root / PACKED_NAME).glob(f"{packed_stem(folder)}-*.safetensors"))


def read_stamp(folder: Path) -> Stamp | None:
    """A folder's stamp; None when there is none of this version, whatever stands there instead."""
    try:
        content = json.loads((folder / STAMP_NAME).read_text(encoding="utf-8"))
        if content["format"] != FORMAT_VERSION:
            return None
        files = {str(name): FileStamp(**stamp) for name, stamp in content["files"].items()}
        return Stamp(str(content["source_path"]), FileStamp(**content["source"]), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_whole(folder: Path) -> bool:
    """Whether the folder holds every file as it was written."""
    stamp = read_stamp(folder)
    return stamp is not None and all(file.is_kept_by(folder / name) for name, file in stamp.files.items())


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the right to write `folder`; what dead processes left half-written beside it is removed."""
    from filelock import FileLock, Timeout

    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=_LOCK_TIMEOUT_S):
            for leftover in folder.parent.glob(f".{folder.name}.new-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield
    except Timeout as error:
        remedy = "wait for it or end it"
        raise ModelUnavailableError(f"another kvchat is still writing {folder}", remedy) from error
    except OSError as error:
        remedy = "free some space or set KVCHAT_MODELS to another folder"
        raise ModelUnavailableError(f"can't write {folder} ({error})", remedy) from error


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
    content = {
        "format": FORMAT_VERSION,
        "source_path": str(source.resolve()),
        "source": asdict(files.get(source.name) or FileStamp.of(source)),
        "files": {name: asdict(stamp) for name, stamp in files.items()},
    }
    (folder / STAMP_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _exchange(folder: Path, new: Path) -> None:
    """Rename, with the old folder out of the way first: a folder can't be renamed onto a full one."""
    if folder.exists():
        grave = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
        folder.rename(grave / folder.name)
        new.rename(folder)
        shutil.rmtree(grave, ignore_errors=True)
    else:
        new.rename(folder)


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
