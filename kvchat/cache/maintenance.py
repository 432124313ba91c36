"""Looking after the cache folder from outside: list, verify, prune, clear; values only, no torch, no model.

What is removed goes under the folder's lock; reading is safe for whoever has a file open, so a running chat sees a miss.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from kvchat.cache.block import TOKEN_BYTES
from kvchat.cache.entry import NO_PARENT, EntryError, EntryName, FolderMeta
from kvchat.cache.folder import (
    META_NAME,
    NOTE_NAME,
    FileId,
    FolderScan,
    StoredFile,
    eviction_order,
    fingerprint_folders,
    hold_lock,
    remove_file,
    rooted_files,
    scan_folder,
)
from kvchat.cache.header import checksum, read_header
from kvchat.cache.ownership import open_own, read_own
from kvchat.errors import KvchatError, reason_of

LOCK_TIMEOUT_S = 10.0
_MAX_META_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class FolderInfo:
    """One fingerprint's folder. `num_tokens` are the tokens whose KV is stored in blocks; times in seconds since the epoch.

    `meta` is None when the folder does not say what it belongs to.
    """

    path: Path
    meta: FolderMeta | None
    num_files: int
    num_tokens: int
    num_bytes: int
    newest_s: float
    oldest_s: float
    num_snapshots: int = 0

    @property
    def share(self) -> float:
        """Of the bytes that all of it would take as it lies in RAM, the part that it takes in files; 1 where nobody knows."""
        if self.meta is None or self.num_files == 0:
            return 1.0
        blocks = self.num_tokens // self.meta.block_size * self.meta.block_bytes
        return self.num_bytes / max(1, blocks + self.num_snapshots * self.meta.snapshot_bytes)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        meta = self.meta.to_json() if self.meta else None
        return {**asdict(self), "path": str(self.path), "meta": meta, "share": self.share}


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that can't be used, and why. It is not `is_damaged` if the system only refused to read it."""

    path: Path
    reason: str
    is_damaged: bool = True


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Every checksum of every file was computed again. `left_over` is what writers that died, or earlier versions, left behind."""

    num_files: int
    num_blocks: int
    num_bytes: int
    bad: tuple[BadFile, ...]
    left_over: tuple[Path, ...]

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.bad

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        bad = [{"path": str(file.path), "reason": file.reason} for file in self.bad]
        return {**asdict(self), "bad": bad, "left_over": [str(path) for path in self.left_over]}


@dataclass(frozen=True, slots=True)
class Freed:
    """What was removed, or, in a dry run, what would be."""

    num_files: int
    num_bytes: int
    is_dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


def list_folders(root: Path, scan: FolderScan | None = None) -> list[FolderInfo]:
    """All fingerprints' folders, the most recently used first; with the files of a `scan` that was made already."""
    files: dict[Path, list[StoredFile]] = defaultdict(list)
    for file in (scan or scan_folder(root)).files:
        files[file.folder].append(file)
    infos = [_describe(folder, files[folder]) for folder in fingerprint_folders(root)]
    return sorted(infos, key=lambda info: info.newest_s, reverse=True)


def stored_tips(root: Path) -> dict[tuple[str, str], int]:
    """How many tokens are stored up to each file's end, by (fingerprint, hash of its last block), both as hex.

    A file is evicted before the one that it continues, so all blocks before that one are stored as well.
    """
    files = scan_folder(root).files
    return {(file.folder.name, file.name.last): file.name.end for file in files}


def verify_checksums(root: Path) -> VerifyReport:
    """Read every stored file again, header and blocks. Changes nothing; what is evicted meanwhile is left out."""
    scan = scan_folder(root)
    bad: list[BadFile] = []
    num_files = num_blocks = num_bytes = 0
    for file in scan.files:
        try:
            num_blocks += _verify(file)
        except FileNotFoundError:
            continue
        except (OSError, EntryError) as error:
            bad.append(BadFile(file.path, str(error), isinstance(error, EntryError)))
        num_files += 1
        num_bytes += file.num_bytes
    return VerifyReport(num_files, num_blocks, num_bytes, tuple(bad), scan.left_over)


def remove_bad(root: Path, report: VerifyReport, *, dry_run: bool = False) -> Freed:
    """Remove the files that a verification found damaged."""
    paths = {file.path for file in report.bad if file.is_damaged}
    return _remove(root, lambda files: (file for file in files if file.path in paths), dry_run)


def prune(
    root: Path, *, budget_bytes: int | None = None, older_than_s: float | None = None, dry_run: bool = False
) -> Freed:
    """Remove orphans, what was not used for `older_than_s` seconds, and the least recently used over `budget_bytes`.

    A file that another one still continues is never removed. Raises KvchatError.
    """
    before_ns = -1 if older_than_s is None else time.time_ns() - int(older_than_s * 1e9)

    def choose(files: tuple[StoredFile, ...]) -> Iterator[StoredFile]:
        num_bytes = sum(file.num_bytes for file in files)
        rooted = rooted_files(files)
        kept: set[tuple[str, str]] = set()
        for file in eviction_order(files):
            is_excess = budget_bytes is not None and num_bytes > budget_bytes
            is_old = file.mtime_ns < before_ns and file.id not in kept
            if is_excess or is_old or file.id not in rooted:
                num_bytes -= file.num_bytes
                yield file
            else:
                kept.add(file.parent_id)

    return _remove(root, choose, dry_run)


def clear(root: Path, *, dry_run: bool = False) -> Freed:
    """Remove every stored file of every fingerprint. Raises KvchatError."""
    return _remove(root, eviction_order, dry_run)


def forget(root: Path, gone: Set[FileId], kept: Set[FileId], *, dry_run: bool = False) -> Freed:
    """Remove what may hold tokens of chains up to the tips in `gone`, unless they lead to a tip in `kept` as well.

    Tips are (fingerprint, block hash) as in `stored_tips`. Of the fingerprints of `gone` nothing stays but what leads to
    a kept tip: a file may have no tip to tell what it belongs to. Raises KvchatError.
    """
    fingerprints = {fingerprint for fingerprint, _ in gone - kept}

    def choose(files: tuple[StoredFile, ...]) -> Iterator[StoredFile]:
        by_id = {file.id: file for file in files}
        needed: set[FileId] = set()
        for file in files:
            above = file if (file.folder.name, file.name.last) in kept else None
            while above is not None and above.id not in needed:
                needed.add(above.id)
                above = by_id.get(above.parent_id)
        for file in files:
            if file.folder.name in fingerprints and file.id not in needed:
                yield file

    return _remove(root, choose, dry_run)


def read_tokens(path: Path) -> tuple[int, ...]:
    """The token ids of a stored file, all from the root on, to compute them again. Raises EntryError, OSError.

    The ones before its own are in the files that it continues.
    """
    names = (EntryName.parse(other.name) for other in path.parent.iterdir())
    by_key = {name.key: path.with_name(str(name)) for name in names if name}
    tokens, end = b"", None
    above: Path | None = path
    while above is not None:
        with os.fdopen(open_own(above), "rb", buffering=0) as stream:
            header = read_header(stream.fileno())
        size = len(header.tokens) if end is None else (end - header.start) * TOKEN_BYTES
        tokens, end = header.tokens[: max(0, size)] + tokens, header.start
        if header.parent != NO_PARENT and (header.parent not in by_key or not header.start):
            raise EntryError("the file that it continues is gone")
        above = by_key.get(header.parent)
    return struct.unpack(f"<{len(tokens) // TOKEN_BYTES}i", tokens)


def _describe(folder: Path, files: list[StoredFile]) -> FolderInfo:
    try:
        meta = FolderMeta.from_json(json.loads(read_own(folder / META_NAME, _MAX_META_BYTES)))
    except (
        OSError,
        EntryError,
        OverflowError,
        RecursionError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ):
        meta = None
    num_tokens = sum(file.name.num_tokens for file in files if not file.name.is_state)
    num_snapshots = sum(file.name.is_state for file in files)
    used_s = [file.mtime_ns / 1e9 for file in files] or [0.0]
    num_bytes = sum(file.num_bytes for file in files)
    times = max(used_s), min(used_s)
    return FolderInfo(folder, meta, len(files), num_tokens, num_bytes, *times, num_snapshots)


def _verify(file: StoredFile) -> int:
    """Blocks of a sound file. Raises EntryError, OSError."""
    with os.fdopen(open_own(file.path), "rb", buffering=0) as stream:
        header = read_header(stream.fileno())
        header.check(file.name, file.folder.name)
        for offset, size, expected in zip(header.offsets, header.sizes, header.checksums, strict=False):
            block = os.pread(stream.fileno(), size, offset)
            if checksum(memoryview(block)) != expected:
                raise EntryError("a block's checksum is wrong")
    return header.num_blocks


def _remove(
    root: Path, choose: Callable[[tuple[StoredFile, ...]], Iterable[StoredFile]], is_dry_run: bool
) -> Freed:
    if is_dry_run or not root.is_dir():
        return _freed(choose(scan_folder(root).files), is_dry_run)
    try:
        with hold_lock(root, LOCK_TIMEOUT_S):
            scan = scan_folder(root)
            for path in scan.left_over:
                remove_file(path)
            freed = _freed((file for file in choose(scan.files) if remove_file(file.path)), False)
            _remove_empty_folders(root)
            return freed
    except filelock.Timeout as error:
        raise KvchatError("the cache folder is being written", "try again in a moment") from error
    except OSError as error:
        raise KvchatError(
            f"can't change the cache folder: {reason_of(error)}", "check its permissions"
        ) from error


def _freed(files: Iterable[StoredFile], is_dry_run: bool) -> Freed:
    sizes = [file.num_bytes for file in files]
    return Freed(len(sizes), sum(sizes), is_dry_run)


def _remove_empty_folders(root: Path) -> None:
    """Remove folders in which nothing but their description and note are left. Needs the lock."""
    for folder in fingerprint_folders(root):
        if all(path.name in (META_NAME, NOTE_NAME) for path in folder.iterdir()):
            remove_file(folder / META_NAME)
            remove_file(folder / NOTE_NAME)
            with suppress(OSError):
                folder.rmdir()
