"""Looking at the cache folder from outside: list and verify; values only, changes nothing, no torch, no model."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from kvchat.cache.block import TOKEN_BYTES
from kvchat.cache.entry import NO_PARENT, EntryError, EntryName, FolderMeta
from kvchat.cache.folder import (
    META_NAME,
    FolderScan,
    StoredFile,
    scan_folder,
)
from kvchat.cache.header import checksum, read_header
from kvchat.cache.ownership import open_own, read_own

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


def list_folders(root: Path, scan: FolderScan | None = None) -> list[FolderInfo]:
    """All fingerprints' folders, the most recently used first; with the files of a `scan` that was made already."""
    scan = scan or scan_folder(root)
    files = {folder: list(group) for folder, group in groupby(scan.files, lambda file: file.folder)}
    infos = [_describe(folder, files.get(folder, [])) for folder in scan.folders]
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
