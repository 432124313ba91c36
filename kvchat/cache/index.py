"""What one fingerprint's folder holds, by hash and proven by token ids; reads names and headers, changes no file.

The folder is the index: names are listed again when the folder has changed, headers are read when first needed and
kept. A file's own ids prove its blocks, and those of the files that it continues the ones before.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from kvchat.cache.base import Piece, Stored
from kvchat.cache.block import Chain
from kvchat.cache.entry import NO_PARENT, EntryError, EntryName, FolderMeta
from kvchat.cache.folder import turn_of
from kvchat.cache.header import Header, read_header
from kvchat.cache.ownership import check_folder, open_own
from kvchat.cache.transfer import Place, Transfer
from kvchat.cache.tree import RecentDigests, Tree

# A folder that changed this recently may change again without a newer time stamp; some file systems count seconds.
RACY_NS = 2_100_000_000


class FileRun:
    """A file as the tree knows it; its header is read when its ids are asked for."""

    __slots__ = ("_index", "first", "header", "name", "seen", "stamped_s", "start")

    def __init__(self, name: EntryName, index: FolderIndex, block_size: int) -> None:
        self.name = name
        self.start = name.start // block_size
        self.first = bytes.fromhex(name.first)
        self.header: Header | None = None
        self.seen: tuple[bytes, ...] = ()
        """The hashes of its blocks, as far as something was matched there."""
        self.stamped_s = -math.inf
        """When this process marked it as used, of time.monotonic."""
        self._index = index

    @property
    def id(self) -> Hashable:
        """Its key."""
        return self.name.key

    @property
    def above(self) -> Hashable:
        return None if self.name.parent == NO_PARENT else self.name.parent

    @property
    def is_state(self) -> bool:
        return self.name.is_state

    @property
    def priority(self) -> int:
        return self.name.priority

    def ids(self) -> bytes | None:
        """Its own token ids; None when the file can't be used."""
        header = self._index.header(self)
        return header.tokens if header else None


class FolderIndex:
    """The files of one fingerprint. Safe for threads."""

    def __init__(
        self,
        folder: Path,
        meta: FolderMeta,
        transfer: Transfer,
        on_unusable: Callable[[EntryName | None, Exception], None],
    ) -> None:
        """`on_unusable` is told of each file whose header can't be used, and may `drop` it; None is the folder."""
        self._folder = folder
        self._meta = meta
        self._transfer = transfer
        self._on_unusable = on_unusable
        self._lock = threading.RLock()
        self._runs: dict[str, FileRun] = {}
        self._tree: Tree[FileRun] = Tree()
        self._unusable: set[str] = set()
        self._state_ends: set[int] = set()
        self._stamp: tuple[int, int] | None = None
        self._is_racy = False
        self._turn: int | None = None
        self.gone = RecentDigests()
        """Blocks of files that were seen and then vanished or were evicted."""
        self.corrupt = RecentDigests()
        """Blocks of files that turned out to be unusable."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is stored, as far as was seen."""
        return not self._runs

    def match(self, chain: Chain) -> tuple[Piece, ...]:
        """The files that a chain's blocks lie in, from the root on, as far as they reach without a gap."""
        with self._lock:
            self._refresh()
            pieces = self._tree.match(chain) if self._runs else ()
            for run, _, end, _ in pieces:
                if len(run.seen) != end - run.start:
                    run.seen = chain.hashes[run.start : end]
            return pieces

    def knows(self, digest: bytes) -> bool:
        """Whether a file begins with a block, or is a snapshot, by that hash."""
        return self._tree.knows(digest)

    def state_ends(self) -> set[int]:
        """The numbers of tokens behind which a snapshot ever was."""
        with self._lock:
            self._refresh()
            return set(self._state_ends)

    def open(self, name: EntryName) -> tuple[int, Header]:
        """A file's descriptor, for the caller to close, and its checked header. Raises OSError, EntryError."""
        descriptor = open_own(self._folder / str(name))
        try:
            header = read_header(descriptor)
            header.check(name, self._folder.name, self._meta)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, header

    def header(self, run: FileRun) -> Header | None:
        """A file's header, read when it is asked for first; None when it can't be used."""
        if run.header is None:
            try:
                descriptor, run.header = self.open(run.name)
                os.close(descriptor)
            except FileNotFoundError:
                self.lose(str(run.name))
            except (OSError, EntryError) as error:
                self._on_unusable(run.name, error)
        return run.header

    def read(self, pieces: Sequence[Piece], start: int, end: int) -> Iterator[Stored]:
        """Blocks [start, end) of files that were matched, some at a time, as far as that goes."""
        parts = [
            partial(self._read_part, run, *part)
            for run, low, high, _ in pieces
            for part in self._transfer.parts(max(low, start), min(high, end), self._meta.block_bytes)
        ]
        is_ahead = any(piece.run.header and piece.run.header.is_packed for piece in pieces)
        for stored in self._transfer.taken(parts, is_ahead=is_ahead):
            if stored is None:
                return
            yield stored

    def _read_part(self, run: FileRun, low: int, high: int, place: Place) -> Stored | None:
        """A file's blocks [low, high); None when they can't be had.

        Its header is read again, for another process may have replaced the file under the same name.
        """
        try:
            descriptor, header = self.open(run.name)
            try:
                data = self._transfer.read(descriptor, header, low - run.start, high - low, place)
                return Stored(low, high, data)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            self.lose(str(run.name))
        except (OSError, EntryError) as error:
            self._on_unusable(run.name, error)
        return None

    def drop(self, name: EntryName, *, is_removed: bool) -> None:
        """Take an unusable file out; it stays out until it is removed or written anew."""
        with self._lock:
            if not is_removed:
                self._unusable.add(str(name))
            self._forget(str(name), self.corrupt)

    def lose(self, text: str) -> None:
        """A file was found to be gone, or was evicted."""
        with self._lock:
            self._forget(text, self.gone)

    def admit(self, name: EntryName) -> None:
        """A file was written anew: what was known of one by that name no longer holds."""
        with self._lock:
            self._unusable.discard(str(name))
            if str(name) not in self._runs:
                self._add(str(name), name)

    def sync(self, turn: int | None, names: Callable[[], dict[str, EntryName]]) -> None:
        """See what others did since; for whoever holds the folder's lock, with the number that it gave, and knows all `names`."""
        with self._lock:
            is_alone = turn is not None and self._turn is not None and turn == self._turn + 1
            if not is_alone or self._stamp_now() != self._stamp:
                self._update(names())
            self._stamp, self._is_racy, self._turn = self._stamp_now(), True, turn

    def settle(self) -> None:
        """All that happened since `sync` was told: the folder need not be listed again for it. Needs the lock."""
        with self._lock:
            self._stamp, self._is_racy = self._stamp_now(), True

    def _refresh(self) -> None:
        """List the folder again if it may have changed."""
        listed: set[str] = set()
        try:
            stat = check_folder(self._folder)
            stamp = stat.st_ino, stat.st_mtime_ns
            if self._stamp == stamp and not (self._is_racy and self._may_have_changed()):
                return
            self._turn = None
            self._is_racy = abs(time.time_ns() - stat.st_mtime_ns) < RACY_NS
            with os.scandir(self._folder) as entries:
                listed = {entry.name for entry in entries}
            self._stamp = stamp
        except (FileNotFoundError, NotADirectoryError):
            self._stamp = None
        except EntryError as error:
            self._stamp = None
            self._on_unusable(None, error)
        except OSError:  # what was seen is still there, as far as anybody knows
            self._stamp = None
            return
        new = listed - self._runs.keys() - self._unusable
        parsed = {text: name for text in new if (name := EntryName.parse(text))}
        self._update(dict.fromkeys(listed & self._runs.keys()) | parsed)

    def _update(self, names: Mapping[str, EntryName | None]) -> None:
        """These and no others are there; of those that are known already the name is not looked at."""
        for text in self._runs.keys() - names.keys():
            self._forget(text, self.gone)
        for text in names.keys() - self._runs.keys() - self._unusable:
            if name := names[text]:
                self._add(text, name)

    def _stamp_now(self) -> tuple[int, int] | None:
        """The folder's inode and when it was changed; None when that can't be seen."""
        try:
            stat = self._folder.lstat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def _may_have_changed(self) -> bool:
        """Whether another process may have written here since our last turn."""
        return self._turn is None or turn_of(self._folder.parent) != self._turn

    def _add(self, text: str, name: EntryName) -> None:
        run = FileRun(name, self, self._meta.block_size)
        self._runs[text] = run
        self._tree.add(run)
        if name.is_state:
            self._state_ends.add(name.end)

    def _forget(self, text: str, cause: RecentDigests) -> None:
        """Take a file out and remember the blocks it was matched for, or else its first, by the cause."""
        run = self._runs.pop(text, None)
        if run is None:
            return
        self._tree.remove(run)
        for digest in run.seen or (run.first,):
            cause.add(digest)
