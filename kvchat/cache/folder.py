"""The cache folder as a whole: all fingerprints' files, and the lock; knows no torch, no KV.

    <root>/.lock                          held by whoever writes or evicts
    <root>/.turn                          how often it was held, u64 little-endian
    <root>/.uses                          which chains were used and when, as hashes (see `uses`)
    <root>/<chain root>/meta.json         what the folder's files share
    <root>/<chain root>/costs.json        what the model's user noted: how long computing takes
    <root>/<chain root>/<name>.kv         one immutable run of blocks
    <root>/<chain root>/<name>.state      one immutable snapshot
    <root>/<chain root>/<key>.tmp         a run being written, only while the lock is held

A temporary file is written only under the lock, so whoever holds the lock may remove any: its writer is dead. So may
he what earlier versions of kvchat stored, which nobody reads any more.
"""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import filelock

from kvchat.cache.entry import NO_PARENT, EntryError, EntryName, is_old_name
from kvchat.cache.ownership import is_own_folder, read_own

LOCK_NAME = ".lock"
TURN_NAME = ".turn"
META_NAME = "meta.json"
NOTE_NAME = "costs.json"
TEMPORARY = ".tmp"


class StoredFile(NamedTuple):
    """One run or snapshot on disk. `mtime_ns` is when it was last used."""

    folder: Path
    name: EntryName
    num_bytes: int
    mtime_ns: int

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder / str(self.name)

    @property
    def id(self) -> tuple[str, str]:
        """Its folder's name and its key."""
        return self.folder.name, self.name.key

    @property
    def parent_id(self) -> tuple[str, str]:
        """The `id` of the file that it continues."""
        return self.folder.name, self.name.parent


@dataclass(frozen=True, slots=True)
class FolderScan:
    """The folders of all fingerprints, all runs and snapshots in them, and the files left behind that are of no use.

    `refused` is why there may be more: the system did not let us look.
    """

    folders: tuple[Path, ...]
    files: tuple[StoredFile, ...]
    left_over: tuple[Path, ...]
    refused: OSError | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(file.num_bytes for file in self.files)


@contextmanager
def uncollected() -> Iterator[None]:
    """Let nobody look for garbage: of what a long listing makes all stays, and looking took a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@uncollected()
def scan_folder(root: Path) -> FolderScan:
    """What lies in the cache folder now; empty when it is missing. What vanishes meanwhile is left out."""
    files: list[StoredFile] = []
    left_over: list[Path] = []
    refused: list[OSError] = []
    folders = tuple(fingerprint_folders(root, refused))
    for folder in folders:
        for entry in _listing(folder, refused):
            name = EntryName.parse(entry.name)
            if name is None:
                if entry.name.endswith(TEMPORARY) or is_old_name(entry.name):
                    left_over.append(folder / entry.name)
                continue
            try:
                if not entry.is_dir(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    files.append(StoredFile(folder, name, stat.st_size, stat.st_mtime_ns))
            except OSError:
                continue
    return FolderScan(folders, tuple(files), tuple(left_over), refused[0] if refused else None)


def fingerprint_folders(root: Path, refused: list[OSError] | None = None) -> list[Path]:
    """The folders of all fingerprints, by name; a link, or one of another user, is none.

    `refused` is given what the system did not let us see.
    """
    names = sorted(entry.name for entry in _listing(root, refused) if _is_digest(entry.name))
    return [root / name for name in names if is_own_folder(root / name)]


FileId = tuple[str, str]


def rooted_files(files: Iterable[StoredFile]) -> dict[FileId, StoredFile]:
    """The files whose chain of parents is whole, up to one that begins at the root; by their `id`, parents first."""
    children: dict[FileId, list[StoredFile]] = defaultdict(list)
    rooted: dict[FileId, StoredFile] = {}
    for file in files:
        children[file.parent_id].append(file)
        if file.name.parent == NO_PARENT:
            rooted[file.id] = file
    reached = list(rooted)
    while reached:
        below = {file.id: file for file in children[reached.pop()] if file.id not in rooted}
        rooted |= below
        reached.extend(below)
    return rooted


@contextmanager
def hold_lock(root: Path, timeout_s: float) -> Iterator[int | None]:
    """Hold the folder's lock against all processes; yields which turn it is. Raises filelock.Timeout, OSError.

    Whoever had the turn before knows that nobody has written since. None where turns can't be counted.
    """
    with filelock.FileLock(root / LOCK_NAME, timeout=timeout_s, poll_interval=0.01, mode=0o600):
        yield _next_turn(root / TURN_NAME)


def turn_of(root: Path) -> int | None:
    """Whose turn it was last; None where turns can't be counted."""
    try:
        return int.from_bytes(read_own(root / TURN_NAME, 8), "little")
    except (OSError, EntryError):
        return None


def _next_turn(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            turn = int.from_bytes(os.pread(descriptor, 8, 0), "little") + 1
            os.pwrite(descriptor, (turn % 2**64).to_bytes(8, "little"), 0)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return turn


def make_private_folder(path: Path) -> None:
    """Create a folder and what is above it, open to its owner alone. Raises OSError."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def open_new(path: Path) -> BinaryIO:
    """Open a new file for writing, open to its owner alone. Raises OSError, also when there is one already."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)


def put_file(
    path: Path, temporary: Path, parts: Sequence[memoryview], open_new: Callable[[Path], BinaryIO] = open_new
) -> None:
    """Write a file, whole or not at all. Needs the lock. Raises OSError."""
    remove_file(temporary)
    try:
        with open_new(temporary) as file:
            for part in parts:
                written = 0
                while written < part.nbytes:
                    written += file.write(part[written:])
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        remove_file(temporary)
        raise


def remove_file(path: Path) -> bool:
    """Delete a file; safe for whoever reads it. False when it could not be deleted."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def default_disk_bytes(path: Path) -> int:
    """4 GiB or a tenth of the free space where `path` is or will be, the smaller; 0 when that can't be told.

    What the cache itself takes counts as free, so that it does not shrink by filling up.
    """
    for folder in (path, *path.parents):
        try:
            stat = os.statvfs(folder)
        except OSError:
            continue
        free_bytes = stat.f_bavail * stat.f_frsize + scan_folder(path).num_bytes
        return min(4 * 2**30, free_bytes // 10)
    return 0


def _is_digest(name: str) -> bool:
    return len(name) == 32 and set(name) <= set("0123456789abcdef")


def _listing(folder: Path, refused: list[OSError] | None = None) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if refused is not None:
            refused.append(error)
        return []
