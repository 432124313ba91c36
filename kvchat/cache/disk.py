"""The disk tier of one fingerprint: immutable checksummed files under a byte budget, shared by several processes.

Evicting and writing happen under the folder's lock; reading needs none. Whatever goes wrong here is a miss and one warning. Knows no torch and no arena.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from kvchat.cache.base import CacheSettings, Ended, Piece, Stored, Tier, Warn
from kvchat.cache.block import Chain
from kvchat.cache.entry import NO_PARENT, EntryError, EntryName, FolderMeta
from kvchat.cache.folder import (
    META_NAME,
    NOTE_NAME,
    TEMPORARY,
    hold_lock,
    make_private_folder,
    put_file,
    remove_file,
    scan_folder,
)
from kvchat.cache.forgetting import MAX_NOTE_BYTES
from kvchat.cache.header import pack_header
from kvchat.cache.index import FolderIndex
from kvchat.cache.ownership import check_folder, check_top, read_own
from kvchat.cache.rates import Rates
from kvchat.cache.run import StoredRun
from kvchat.cache.stats import CacheStats, StatsCounter
from kvchat.cache.transfer import Transfer
from kvchat.cache.uses import shorten

MAX_RETRY_S = 300.0
LATELY_S = 600.0
"""What continues a file that was used so lately is marked as used in its place."""


class DiskTier(Tier):
    """The files of one fingerprint. See `base.Tier`; safe for other processes on the same folder too."""

    name = "disk"

    def __init__(
        self, settings: CacheSettings, digest: bytes, meta: FolderMeta, *, stats: StatsCounter, warn: Warn
    ) -> None:
        """The folder `digest` below the settings' root; it is created with the first file."""
        assert settings.disk_root is not None
        self._root = settings.disk_root
        self.folder = self._root / digest.hex()
        self._settings = settings
        self._meta = meta
        self._stats = stats
        self._warn = warn
        self._warned: set[str] = set()
        self._transfer = Transfer(meta, may_pack=settings.codec == "packed")
        self._index = FolderIndex(self.folder, meta, self._transfer, self.condemn, settings.policy)
        self._shelf = self._index.shelf
        self._newest_ns = 0
        self._resting = self._resumes_at = 0.0

    @property
    def used_bytes(self) -> int:
        """Bytes that all models' files take now; counted anew where another process has changed something."""
        known = self._shelf.settled_bytes()
        return scan_folder(self._root).num_bytes if known is None else known

    @property
    def budget_bytes(self) -> int:
        return self._settings.disk_bytes

    @property
    def is_writable(self) -> bool:
        """Whether writing is allowed, and was not refused just now."""
        return self._settings.mode == "rw" and time.monotonic() >= self._resumes_at

    def match(self, chain: Chain) -> tuple[Piece, ...]:
        return self._index.match(chain)

    def knows(self, digest: bytes) -> bool:
        return self._index.knows(digest)

    def state_ends(self) -> set[int]:
        """The numbers of tokens behind which a snapshot ever was seen here."""
        return self._index.state_ends()

    def why_missing(self, digest: bytes) -> Ended:
        """Corrupt or evicted, if that was seen not long ago."""
        if digest in self._index.corrupt or digest in self._index.gone:
            return Ended.CORRUPT if digest in self._index.corrupt else Ended.EVICTED
        return Ended.FIRST_USE if self._index.is_empty else Ended.NEW_TEXT

    def read(self, pieces: Sequence[Piece], start: int, end: int) -> Iterator[Stored]:
        """Blocks [start, end), some at a time; nothing is given out before its checksum is verified."""
        return self._index.read(pieces, start, end)

    def store(self, chain: Chain, start: int, data: np.ndarray[Any, Any], *, priority: int = 0) -> bool:
        """Write a chain's blocks from `start` to its end. False when they are not on disk afterwards.

        What is stored after `start`, be it by another process just now, is not written twice.
        """
        if not self.is_writable:
            return False
        is_state = start == chain.num_full
        blocks, is_packed = self._transfer.cut(data.data, len(chain) - start, is_state=is_state)
        return self._locked(lambda: self._store_locked(chain, start, blocks, priority, is_packed=is_packed))

    def use(self, chain: Chain, priority: int = 0) -> None:
        """Make a chain's files the most recently used, the tail first; raise their priority to at least `priority`.

        Nothing goes before what continues it, so that of the files before the last it is enough that they were used
        lately: a long conversation has many, and goes on often.
        """
        if not self.is_writable:
            return
        now, pieces = time.monotonic(), self.match(chain)
        if pieces:
            self._shelf.asked(chain.hashes, priority)
        for piece in reversed(pieces):
            name = piece.run.name
            if piece is not pieces[-1] and now - piece.run.stamped_s < LATELY_S and name.priority >= priority:
                continue
            piece.run.stamped_s = now
            path = self.folder / str(name)
            with suppress(OSError):
                self._newest_ns = max(self._newest_ns, path.stat().st_mtime_ns)
                self._stamp_now(path)
                self._shelf.used(piece.run, self._newest_ns)
                if name.priority < priority:
                    self._raise_priority(name, priority)

    def learned(self) -> Rates | None:
        """What all processes on this folder learned of when conversations are gone on with, for another tier."""
        return self._shelf.forgetting.learned()

    def note(self) -> bytes:
        """What was noted beside the files; empty for nothing."""
        try:
            return read_own(self.folder / NOTE_NAME, MAX_NOTE_BYTES)
        except (OSError, EntryError):
            return b""

    def keep_note(self, content: bytes) -> bool:
        """Note something beside the files, in place of what was there. False when it is not there afterwards."""

        def write() -> bool:
            self._describe(NOTE_NAME)
            self._put(self.folder / NOTE_NAME, NOTE_NAME, memoryview(content))
            return True

        return self._locked(write)

    def sweep(self) -> None:
        """Remove what dead processes left half-written, and evict down to the budget; skipped while others write."""
        if not self.is_writable or not self._root.is_dir():
            return
        try:
            with self._turn(0.0):
                self._evict_for(0, frozenset())
        except EntryError as error:
            self.condemn(None, error)
        except (OSError, filelock.Timeout):
            pass

    def condemn(self, run: StoredRun | None, error: Exception) -> None:
        """Treat a file (None is the whole folder) as a miss, with one warning; delete it if it is surely damaged.

        What the system refuses to read is no damage: it is a miss now, and asked for again.
        """
        if run is None:
            self._warn_once("folder", f"the cache folder {self.folder} is not used: {error}")
            return
        if not isinstance(error, EntryError):
            what = "a stored file can't be read now and its tokens are computed again"
            self._warn_once("read", f"{what}: {error}")
            return
        is_deleted = self._settings.mode == "rw" and not error.is_kept and remove_file(run.path)
        self._index.drop(run, is_deleted=is_deleted)
        self._stats.add(CacheStats(corrupt_files=1))
        self._warn_once("corrupt", f"a stored file is not used and its tokens are computed again: {error}")

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(message)

    def _locked(self, write: Callable[[], bool]) -> bool:
        if not self.is_writable:
            return False
        try:
            make_private_folder(self.folder)
            check_folder(self.folder)
            with self._turn(self._settings.lock_timeout_s):
                is_stored = write()
            self._resting = 0.0
            return is_stored
        except FileNotFoundError:
            pass  # somebody deleted the folder just now; the next store creates it again
        except filelock.Timeout:
            self._warn_once("lock", "another process holds the cache folder's lock: not everything is stored")
        except EntryError as error:
            self.condemn(None, error)
        except OSError as error:
            self._rest()
            what = "the cache folder can't be written now, so nothing is stored for a while"
            self._warn_once("write", f"{what}: {error}")
        return False

    def _rest(self) -> None:
        """Write nothing for a while: what the system refuses once may work again, but seldom at once."""
        self._resting = min(MAX_RETRY_S, 2 * self._resting or self._settings.retry_s)
        self._resumes_at = time.monotonic() + self._resting

    def _store_locked(
        self, chain: Chain, start: int, blocks: Sequence[memoryview], priority: int, *, is_packed: bool
    ) -> bool:
        pieces = self.match(chain)
        num_held = pieces[-1].end if pieces else 0
        if num_held == len(chain):
            return True
        if num_held < start:
            return False
        blocks = blocks[num_held - start :]
        above = [piece.run.name for piece in pieces]
        name = EntryName.of(chain, num_held, above[-1].key if above else NO_PARENT, priority)
        header = pack_header(self.folder.name, name, chain, self._meta, blocks, is_packed=is_packed)
        num_bytes = len(header) + sum(block.nbytes for block in blocks)
        if not self._evict_for(num_bytes, frozenset(name.key for name in above)):
            return False
        self._write(name, memoryview(header), *blocks)
        self._stats.add(CacheStats(written_bytes=num_bytes))
        return True

    def _evict_for(self, num_bytes: int, kept: frozenset[str]) -> bool:
        """Evict, over all fingerprints, until `num_bytes` more fit; what `kept` continues stays. Needs the lock.

        Raises OSError where it can't be seen how much there is.
        """
        self._newest_ns = max(self._newest_ns, self._shelf.newest_ns)
        excess = self._shelf.num_bytes + num_bytes - self._settings.disk_bytes
        num_evicted = self._shelf.evict(excess, ((self.folder.name, key) for key in kept))
        self._stats.add(CacheStats(evicted_files=num_evicted or 0))
        return num_evicted is not None

    @contextmanager
    def _turn(self, timeout_s: float) -> Iterator[None]:
        """Hold the folder's lock, and know what lies there. Raises filelock.Timeout, OSError, EntryError."""
        check_top(self._root)
        with hold_lock(self._root, timeout_s) as turn, self._shelf.changing(turn):
            if self._shelf.forgetting.is_long:
                shorten(self._root)
            yield

    def _write(self, name: EntryName, *parts: memoryview) -> None:
        """Put a file into the folder, whole or not at all. Raises OSError."""
        self._describe(name.key)
        path = self.folder / str(name)
        self._put(path, name.key, *parts)
        self._stamp_now(path)
        self._shelf.add(self.folder, name)

    def _describe(self, key: str) -> None:
        """Say what the folder's files share, where that is not said yet."""
        meta = self.folder / META_NAME
        if not meta.exists() or meta.is_symlink():
            self._put(meta, key, memoryview(json.dumps(self._meta.to_json()).encode()))

    def _put(self, path: Path, key: str, *parts: memoryview) -> None:
        put_file(path, self.folder / f"{key}{TEMPORARY}", parts, self._settings.open_new)

    def _stamp_now(self, path: Path) -> None:
        """Mark a file as the most recently used, whatever the clock says."""
        self._newest_ns = max(time.time_ns(), self._newest_ns + 1000)
        os.utime(path, ns=(self._newest_ns, self._newest_ns))

    def _raise_priority(self, name: EntryName, priority: int) -> None:
        raised = name._replace(priority=priority)
        with suppress(filelock.Timeout, EntryError), self._turn(self._settings.lock_timeout_s):
            (self.folder / str(name)).rename(self.folder / str(raised))
            self._shelf.add(self.folder, raised, was=name)


def open_disk(
    settings: CacheSettings, root: bytes, meta: FolderMeta, *, stats: StatsCounter, warn: Warn
) -> DiskTier | None:
    """The disk tier that is asked for, swept; None for none."""
    if settings.mode == "off" or settings.disk_root is None or settings.disk_bytes <= 0:
        return None
    disk = DiskTier(settings, root, meta, stats=stats, warn=warn)
    disk.sweep()
    return disk
