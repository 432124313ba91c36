"""What one fingerprint's folder holds, by hash and proven by token ids; reads headers and blocks, changes no file.

Headers are read when first needed and kept. A file's own ids prove its blocks, and those of the files that it continues
the ones before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from kvchat.cache.base import Piece, Stored
from kvchat.cache.block import Chain
from kvchat.cache.entry import EntryError, FolderMeta
from kvchat.cache.header import Header, read_header
from kvchat.cache.ownership import open_own
from kvchat.cache.run import StoredRun
from kvchat.cache.shelf import Shelf, Watcher
from kvchat.cache.transfer import Place, Transfer
from kvchat.cache.tree import RecentDigests, Tree


class FolderIndex(Watcher):
    """The files of one fingerprint. Safe for threads."""

    def __init__(
        self,
        folder: Path,
        meta: FolderMeta,
        transfer: Transfer,
        on_unusable: Callable[[StoredRun | None, Exception], None],
        policy: str = "kvchat",
    ) -> None:
        """`on_unusable` is told of each file whose header can't be used, and may `drop` it; None is the folder."""
        self.shelf = Shelf(folder.parent, folder, self, policy)
        """These files, and those of all other fingerprints."""
        self._folder = folder
        self._meta = meta
        self._transfer = transfer
        self._on_unusable = on_unusable
        self._tree: Tree[StoredRun] = Tree()
        self._runs: set[StoredRun] = set()
        self._state_ends: set[int] = set()
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
        with self.shelf.lock:
            self.shelf.look()
            pieces = () if self.is_empty else self._tree.match(chain)
            for run, _, end, _ in pieces[self._tree.num_kept :]:
                if len(run.seen) < end - run.start:
                    run.seen = chain.hashes[run.start : end]
            return pieces

    def knows(self, digest: bytes) -> bool:
        """Whether a file begins with a block, or is a snapshot, by that hash."""
        return self._tree.knows(digest)

    def state_ends(self) -> set[int]:
        """The numbers of tokens behind which a snapshot ever was."""
        with self.shelf.lock:
            self.shelf.look()
            return set(self._state_ends)

    def open(self, run: StoredRun) -> tuple[int, Header]:
        """A file's descriptor, for the caller to close, and its checked header. Raises OSError, EntryError."""
        descriptor = open_own(
            f"{self._folder}/{run.text}"
        )  # a Path of each took a tenth of the time of a look-up
        try:
            header = read_header(descriptor)
            header.check(run.name, self._folder.name, self._meta)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, header

    def header(self, run: StoredRun) -> Header | None:
        """A file's header, read when it is asked for first; None when it can't be used."""
        if run.header is None:
            try:
                descriptor, run.header = self.open(run)
                os.close(descriptor)
            except FileNotFoundError:
                self.shelf.lose(run)
            except (OSError, EntryError) as error:
                self._on_unusable(run, error)
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

    def _read_part(self, run: StoredRun, low: int, high: int, place: Place) -> Stored | None:
        """A file's blocks [low, high); None when they can't be had.

        Its header is read again, for another process may have replaced the file under the same name.
        """
        try:
            descriptor, header = self.open(run)
            try:
                data = self._transfer.read(descriptor, header, low - run.start, high - low, place)
                return Stored(low, high, data)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            self.shelf.lose(run)
        except (OSError, EntryError) as error:
            self._on_unusable(run, error)
        return None

    def drop(self, run: StoredRun, *, is_deleted: bool) -> None:
        """Take an unusable file out; it stays out until it is written anew."""
        with self.shelf.lock:
            self._take_out(run, self.corrupt)
            if is_deleted:
                self.shelf.lose(run)

    def added(self, run: StoredRun) -> None:
        run.start = run.name.start // self._meta.block_size
        run.first = bytes.fromhex(run.name.first)
        run.read_header = self.header
        self._runs.add(run)
        self._tree.add(run)
        if run.is_state:
            self._state_ends.add(run.name.end)

    def removed(self, run: StoredRun) -> None:
        if run in self._runs:
            self._take_out(run, self.gone)

    def refused(self, error: EntryError) -> None:
        self._on_unusable(None, error)

    def _take_out(self, run: StoredRun, cause: RecentDigests) -> None:
        """Remember the blocks that a file was matched for, or else its first, by the cause."""
        if run in self._runs:  # or another thread was told of it first
            self._runs.remove(run)
            self._tree.remove(run)
        for digest in run.seen or (run.first,):
            cause.add(digest)
