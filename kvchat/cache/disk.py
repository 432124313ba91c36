"""The disk tier of one fingerprint: immutable checksummed files under a byte budget, shared by several processes.

Evicting and writing happen under the folder's lock; reading needs none. Whatever goes wrong here is a miss and one warning. Knows no torch and no arena.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import filelock

from kvchat.cache.block import Chain, Point
from kvchat.cache.entry import (
    NO_PARENT,
    EntryError,
    EntryName,
    FolderMeta,
    pack_header,
    pack_snapshot_header,
)
from kvchat.cache.folder import (
    META_NAME,
    NOTE_NAME,
    TEMPORARY,
    FolderScan,
    eviction_order,
    hold_lock,
    make_private_folder,
    remove_file,
    scan_folder,
)
from kvchat.cache.index import FolderIndex, Piece
from kvchat.cache.ownership import check_folder, read_own
from kvchat.cache.reader import Reader
from kvchat.cache.stats import CacheStats, StatsCounter

RETRY_S, MAX_RETRY_S = 5.0, 300.0
MAX_NOTE_BYTES = 2**16


def open_new(path: Path) -> BinaryIO:
    """Open a new file for writing, open to its owner alone. Raises OSError, also when there is one already."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)


@dataclass(frozen=True, slots=True)
class DiskSettings:
    """Where and how much: `budget_bytes` holds for all fingerprints together. `is_writable` False changes nothing.

    After a write that the system refused nothing is written for `retry_s` seconds, and longer each time in a row.
    """

    root: Path
    budget_bytes: int
    is_writable: bool = True
    lock_timeout_s: float = 2.0
    retry_s: float = RETRY_S
    open_new: Callable[[Path], BinaryIO] = open_new


class DiskTier:
    """The files of one fingerprint. Safe for threads, and for other processes on the same folder."""

    def __init__(
        self,
        settings: DiskSettings,
        digest: bytes,
        meta: FolderMeta,
        *,
        stats: StatsCounter,
        warn: Callable[[str], None],
    ) -> None:
        """The folder `digest` below the root; it is created with the first file."""
        self.folder = settings.root / digest.hex()
        self._settings = settings
        self._meta = meta
        self._stats = stats
        self._warn = warn
        self._warned: set[str] = set()
        self._index = FolderIndex(self.folder, meta, self.condemn)
        self._newest_ns = 0
        self._resting = 0.0
        self._resumes_at = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is stored, as far as was seen."""
        return self._index.is_empty

    @property
    def is_writable(self) -> bool:
        """Whether writing is allowed, and was not refused just now."""
        return self._settings.is_writable and time.monotonic() >= self._resumes_at

    def is_known_gone(self, digest: bytes) -> bool:
        """Whether a file with this block was seen and then vanished or was evicted."""
        return digest in self._index.gone

    def is_known_corrupt(self, digest: bytes) -> bool:
        """Whether a file with this block turned out to be unusable."""
        return digest in self._index.corrupt

    def num_covered(self, chain: Chain) -> int:
        """How many blocks of a chain are stored, from the root on."""
        pieces = self.match(chain)
        return pieces[-1].end if pieces else 0

    def match(self, chain: Chain, start: int = 0) -> tuple[Piece, ...]:
        """The files that continue a chain from block `start` on, as far as they reach without a gap."""
        return self._index.match(chain, start)

    def is_known(self, digest: bytes) -> bool:
        """Whether a file may hold a block or a snapshot by that name first; whether it does, its tokens prove."""
        return self._index.is_known(digest)

    def snapshot(self, point: Point) -> Piece | None:
        """The file with the snapshot at a point; None when there is none."""
        return self._index.snapshot(point)

    def snapshot_starts(self) -> set[int]:
        """How many full blocks there are before each snapshot that was ever seen here."""
        return self._index.snapshot_starts()

    @contextmanager
    def open(self, piece: Piece) -> Iterator[Reader]:
        """Read a file; it stays readable even if it is evicted meanwhile.

        Its header is read again, for another process may have replaced the file under the same name.
        """
        with ExitStack() as stack:
            reader = Reader(piece, None, self.condemn)
            try:
                descriptor, header = self._index.open(piece.name)
                stack.callback(os.close, descriptor)
                if header.tokens != piece.header.tokens:
                    raise EntryError("it belongs elsewhere")
                reader = Reader(replace(piece, header=header), descriptor, self.condemn)
            except FileNotFoundError:
                pass
            except (OSError, EntryError) as error:
                self.condemn(piece.name, error)
            yield reader

    def store(self, chain: Chain, start: int, payload: memoryview, *, priority: int = 0) -> bool:
        """Write a chain's blocks from `start` to its end. False when they are not on disk afterwards.

        Evicts first, under the folder's lock. The blocks before `start` have to be stored; what is stored after it, be
        it by another process just now, is not written twice.
        """
        return self._locked(lambda: self._store_locked(chain, start, payload, priority))

    def store_snapshot(self, point: Point, payload: memoryview, *, priority: int = 0) -> bool:
        """Write the snapshot at a point, behind the KV of its full blocks where the model has KV. As `store`."""
        return self._locked(lambda: self._store_snapshot_locked(point, payload, priority))

    def note(self) -> bytes:
        """What was noted beside the files; empty for nothing."""
        try:
            return read_own(self.folder / NOTE_NAME, MAX_NOTE_BYTES)
        except (OSError, EntryError):
            return b""

    def keep_note(self, content: bytes) -> bool:
        """Note something beside the files, in place of what was there. False when it is not there afterwards."""
        return self._locked(lambda: self._keep_note_locked(content))

    def _keep_note_locked(self, content: bytes) -> bool:
        self._describe(NOTE_NAME)
        self._put(self.folder / NOTE_NAME, NOTE_NAME, memoryview(content))
        return True

    def _locked(self, write: Callable[[], bool]) -> bool:
        if not self.is_writable:
            return False
        try:
            make_private_folder(self.folder)
            check_folder(self.folder)
            with hold_lock(self._settings.root, self._settings.lock_timeout_s):
                is_stored = write()
            self._resting = 0.0
            return is_stored
        except FileNotFoundError:
            pass  # somebody deleted the folder just now; the next store creates it again
        except filelock.Timeout:
            self.warn_once("lock", "another process holds the cache folder's lock: not everything is stored")
        except EntryError as error:
            self.condemn(None, error)
        except OSError as error:
            self._rest()
            self.warn_once(
                "write", f"the cache folder can't be written now, so nothing is stored for a while: {error}"
            )
        return False

    def _rest(self) -> None:
        """Write nothing for a while: what the system refuses once may work again, but seldom at once."""
        self._resting = min(MAX_RETRY_S, 2 * self._resting or self._settings.retry_s)
        self._resumes_at = time.monotonic() + self._resting

    def touch(self, chain: Chain, priority: int = 0, *, snapshot: Point | None = None) -> None:
        """Make a chain's files the most recently used, the tail first; raise their priority to at least `priority`.

        A `snapshot` behind the chain is its tail.
        """
        if not self.is_writable:
            return
        tail = self.snapshot(snapshot) if snapshot else None
        for piece in reversed([*self.match(chain), *([tail] if tail else [])]):
            path = self.folder / str(piece.name)
            with suppress(OSError):
                self._newest_ns = max(self._newest_ns, path.stat().st_mtime_ns)
                self._stamp_now(path)
                if piece.name.priority < priority:
                    self._raise_priority(piece.name, priority)

    def sweep(self) -> None:
        """Remove what dead processes left half-written, and evict down to the budget; skipped while others write."""
        if not self.is_writable or not self._settings.root.is_dir():
            return
        with suppress(OSError, filelock.Timeout), hold_lock(self._settings.root, 0.0):
            self._evict_for(0, frozenset())

    def condemn(self, name: EntryName | None, error: Exception) -> None:
        """Treat a file (None is the whole folder) as a miss, with one warning; delete it if it is surely damaged.

        What the system refuses to read is no damage: it is a miss now, and asked for again.
        """
        if name is None:
            self.warn_once("folder", f"the cache folder {self.folder} is not used: {error}")
            return
        if not isinstance(error, EntryError):
            self.warn_once(
                "read", f"a stored file can't be read now and its tokens are computed again: {error}"
            )
            return
        is_removed = self._settings.is_writable and not error.is_kept and remove_file(self.folder / str(name))
        self._index.drop(name, is_removed=is_removed)
        self._stats.add(CacheStats(corrupt_files=1))
        self.warn_once("corrupt", f"a stored file is not used and its tokens are computed again: {error}")

    def warn_once(self, kind: str, message: str) -> None:
        """Warn, the first time for each kind of trouble."""
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(message)

    def _store_locked(self, chain: Chain, start: int, payload: memoryview, priority: int) -> bool:
        pieces = self.match(chain)
        num_covered = pieces[-1].end if pieces else 0
        if num_covered == len(chain):
            return True
        if num_covered < start:
            return False
        block_bytes = payload.nbytes // (len(chain) - start)
        payload = payload[(num_covered - start) * block_bytes :]
        start = num_covered
        above = [piece.name for piece in pieces]
        name = EntryName.of(chain, start, above[-1].key if above else NO_PARENT, priority)
        header = pack_header(self.folder.name, self._meta, chain, start, payload)
        if not self._evict_for(len(header) + payload.nbytes, frozenset(name.key for name in above)):
            return False
        self._write(name, header, payload)
        self._stats.add(CacheStats(written_bytes=len(header) + payload.nbytes))
        return True

    def _store_snapshot_locked(self, point: Point, payload: memoryview, priority: int) -> bool:
        if self.snapshot(point):
            return True
        pieces = self.match(point.chain) if self._meta.layout.planes else ()
        if self._meta.layout.planes and (pieces[-1].end if pieces else 0) < len(point.chain):
            return False
        above = [piece.name for piece in pieces]
        name = EntryName.of_snapshot(point, above[-1].key if above else NO_PARENT, priority)
        header = pack_snapshot_header(self.folder.name, self._meta, point, payload)
        if not self._evict_for(len(header) + payload.nbytes, frozenset(name.key for name in above)):
            return False
        self._write(name, header, payload)
        self._stats.add(CacheStats(written_bytes=len(header) + payload.nbytes))
        return True

    def _evict_for(self, num_bytes: int, kept: frozenset[str]) -> bool:
        """Evict, over all fingerprints, until `num_bytes` more fit; what `kept` continues stays. Needs the lock.

        Raises OSError where it can't be seen how much there is.
        """
        scan = scan_folder(self._settings.root)
        if scan.refused:
            raise scan.refused
        for path in scan.temporary:
            remove_file(path)
        self._newest_ns = max([self._newest_ns, *(file.mtime_ns for file in scan.files)])
        excess = scan.num_bytes + num_bytes - self._settings.budget_bytes
        if excess <= 0:
            return True
        protected = self._with_ancestors(scan, kept)
        if excess > sum(file.num_bytes for file in scan.files if file.id not in protected):
            return False
        num_evicted = 0
        for file in eviction_order(scan.files):
            if excess <= 0:
                break
            if file.id not in protected and remove_file(file.path):
                excess -= file.num_bytes
                num_evicted += 1
        self._stats.add(CacheStats(evicted_files=num_evicted))
        return excess <= 0

    def _with_ancestors(self, scan: FolderScan, keys: frozenset[str]) -> set[tuple[str, str]]:
        by_id = {file.id: file for file in scan.files}
        protected: set[tuple[str, str]] = set()
        for key in keys:
            file = by_id.get((self.folder.name, key))
            while file is not None and file.id not in protected:
                protected.add(file.id)
                file = by_id.get(file.parent_id)
        return protected

    def _write(self, name: EntryName, header: bytes, payload: memoryview) -> None:
        """Put a file into the folder, whole or not at all. Raises OSError."""
        self._describe(name.key)
        path = self.folder / str(name)
        self._put(path, name.key, memoryview(header), payload)
        self._index.admit(name)
        self._stamp_now(path)

    def _describe(self, key: str) -> None:
        """Say what the folder's files share, where that is not said yet."""
        meta = self.folder / META_NAME
        if not meta.exists() or meta.is_symlink():
            self._put(meta, key, memoryview(json.dumps(self._meta.to_json()).encode()))

    def _put(self, path: Path, key: str, *parts: memoryview) -> None:
        temporary = self.folder / f"{key}{TEMPORARY}"
        remove_file(temporary)
        try:
            with self._settings.open_new(temporary) as file:
                for part in parts:
                    written = 0
                    while written < part.nbytes:
                        written += file.write(part[written:])
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            remove_file(temporary)
            raise

    def _stamp_now(self, path: Path) -> None:
        """Mark a file as the most recently used, whatever the clock says."""
        self._newest_ns = max(time.time_ns(), self._newest_ns + 1000)
        os.utime(path, ns=(self._newest_ns, self._newest_ns))

    def _raise_priority(self, name: EntryName, priority: int) -> None:
        raised = replace(name, priority=priority)
        with suppress(filelock.Timeout), hold_lock(self._settings.root, self._settings.lock_timeout_s):
            (self.folder / str(name)).rename(self.folder / str(raised))
