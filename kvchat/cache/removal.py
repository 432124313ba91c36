"""Removing stored files from outside: prune, clear, forget; values only, no torch, no model.

What is removed goes under the folder's lock. That is safe for whoever has a file open, so a running chat sees a miss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from kvchat.cache.folder import (
    META_NAME,
    NOTE_NAME,
    FileId,
    StoredFile,
    fingerprint_folders,
    hold_lock,
    remove_file,
    rooted_files,
    scan_folder,
)
from kvchat.cache.forgetting import eviction_order
from kvchat.cache.maintenance import VerifyReport
from kvchat.cache.uses import USES_NAME, make_nameless
from kvchat.errors import KvchatError, reason_of

LOCK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Freed:
    """What was removed, or, in a dry run, what would be."""

    num_files: int
    num_bytes: int
    is_dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


def remove_bad(root: Path, report: VerifyReport, *, dry_run: bool = False) -> Freed:
    """Remove the files that a verification found damaged."""
    paths = {file.path for file in report.bad if file.is_damaged}
    return _remove(root, lambda files: (file for file in files if file.path in paths), dry_run)


def prune(
    root: Path,
    *,
    budget_bytes: int | None = None,
    older_than_s: float | None = None,
    policy: str = "kvchat",
    dry_run: bool = False,
) -> Freed:
    """Remove orphans, what was not used for `older_than_s` seconds, and what `policy` says over `budget_bytes`.

    A file that another one still continues is never removed. Raises KvchatError.
    """
    before_ns = -1 if older_than_s is None else time.time_ns() - int(older_than_s * 1e9)

    def choose(files: tuple[StoredFile, ...]) -> Iterator[StoredFile]:
        num_bytes = sum(file.num_bytes for file in files)
        rooted = rooted_files(files)
        kept: set[tuple[str, str]] = set()
        for file in eviction_order(files, root, policy):
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
    return _remove(root, lambda files: eviction_order(files, root), dry_run)


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
            gone = {file for file in choose(scan.files) if remove_file(file.path)}
            _forget_uses(root, [file for file in scan.files if file not in gone])
            _remove_empty_folders(root)
            return _freed(gone, False)
    except filelock.Timeout as error:
        raise KvchatError("the cache folder is being written", "try again in a moment") from error
    except OSError as error:
        raise KvchatError(
            f"can't change the cache folder: {reason_of(error)}", "check its permissions"
        ) from error


def _forget_uses(root: Path, files: Sequence[StoredFile]) -> None:
    """Leave no hash in the log of uses of what is not stored any more. Needs the lock."""
    if not files:
        remove_file(root / USES_NAME)
        return
    make_nameless(root, {bytes.fromhex(file.name.last) for file in files})


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
