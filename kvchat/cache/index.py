"""What one fingerprint's folder holds, by hash and proven by token ids; reads names and headers, changes no file.

The folder is the index: names are listed again when the folder has changed, headers are read when first needed and
kept. A file's header has all token ids from the root on, so each file is proven by itself, and files may overlap.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kvchat.cache.block import Chain, Point, RecentDigests
from kvchat.cache.entry import EntryError, EntryName, FolderMeta, Header, read_header
from kvchat.cache.ownership import check_folder, open_own

# A folder that changed this recently may change again without a newer time stamp; some file systems count seconds.
RACY_NS = 2_100_000_000


@dataclass(frozen=True, slots=True)
class Piece:
    """Blocks [start, end) of a chain in one file, or the snapshot behind them, proven by its header's token ids."""

    name: EntryName
    header: Header
    start: int
    end: int


class FolderIndex:
    """The files of one fingerprint. Safe for threads."""

    def __init__(
        self, folder: Path, meta: FolderMeta, on_unusable: Callable[[EntryName | None, Exception], None]
    ) -> None:
        """`on_unusable` is told of each file whose header can't be used, and may `drop` it; None is the folder."""
        self._folder = folder
        self._meta = meta
        self._on_unusable = on_unusable
        self._lock = threading.RLock()
        self._names: dict[str, EntryName] = {}
        self._by_first: dict[str, dict[str, EntryName]] = {}
        self._headers: dict[str, Header] = {}
        self._digests: dict[str, tuple[bytes, ...]] = {}
        self._unusable: set[str] = set()
        self._snapshot_starts: set[int] = set()
        self._stamp: tuple[int, int] | None = None
        self.gone = RecentDigests()
        """Blocks of files that were seen and then vanished or were evicted."""
        self.corrupt = RecentDigests()
        """Blocks of files that turned out to be unusable."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is stored, as far as was seen."""
        return not self._names

    def match(self, chain: Chain, start: int = 0) -> tuple[Piece, ...]:
        """The files that continue a chain from block `start` on, as far as they reach without a gap.

        Of the files that hold a block the one that reaches furthest is taken, which makes the fewest pieces.
        """
        with self._lock:
            self._refresh()
            pieces: list[Piece] = []
            best: Piece | None = None
            at, seen = start, 0
            while at < len(chain) and self._names:
                while seen <= at:
                    for piece in self._beginning_at(chain, seen, at):
                        best = piece if best is None or piece.end > best.end else best
                    seen += 1
                if best is None or best.end <= at:
                    break
                pieces.append(Piece(best.name, best.header, at, best.end))
                self._digests[best.name.key] = chain.hashes[best.start : best.end]
                at = best.end
            return tuple(pieces)

    def is_known(self, digest: bytes) -> bool:
        """Whether a file begins with a block, or is a snapshot, by that name."""
        return digest.hex() in self._by_first

    def snapshot(self, point: Point) -> Piece | None:
        """The file with the snapshot at a point, proven by all token ids; None when there is none."""
        with self._lock:
            self._refresh()
            named = self._by_first.get(point.digest.hex())
            for name in list(named.values()) if named else ():
                header = self._header(name) if name.is_snapshot else None
                if header is not None and header.tokens == point.tokens:
                    return Piece(name, header, name.start, name.end)
        return None

    def snapshot_starts(self) -> set[int]:
        """How many full blocks there are before each snapshot that was ever seen."""
        with self._lock:
            self._refresh()
            return set(self._snapshot_starts)

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

    def drop(self, name: EntryName, *, is_removed: bool) -> None:
        """Take an unusable file out; it stays out until it is removed or written anew."""
        with self._lock:
            if not is_removed:
                self._unusable.add(str(name))
            self._forget(name, self.corrupt)

    def admit(self, name: EntryName) -> None:
        """A file was written anew: what was known of one by that name no longer holds."""
        with self._lock:
            self._unusable.discard(str(name))

    def _beginning_at(self, chain: Chain, block: int, at: int) -> Iterator[Piece]:
        """The usable files that begin with a chain's block and reach past `at`, as far as their tokens are equal."""
        named = self._by_first.get(chain.hashes[block].hex())
        for name in list(named.values()) if named else ():
            is_run = not name.is_snapshot and name.start == block and name.end > at
            header = self._header(name) if is_run else None
            if header is not None:
                end = chain.num_common_blocks(header.tokens)
                if end > max(at, block):
                    yield Piece(name, header, block, end)

    def _header(self, name: EntryName) -> Header | None:
        header = self._headers.get(name.key)
        if header is not None:
            return header
        try:
            descriptor, header = self.open(name)
            os.close(descriptor)
        except FileNotFoundError:
            return None
        except (OSError, EntryError) as error:
            self._on_unusable(name, error)
            return None
        self._headers[name.key] = header
        return header

    def _refresh(self) -> None:
        """List the folder again if it may have changed."""
        try:
            stat = check_folder(self._folder)
            stamp = stat.st_ino, stat.st_mtime_ns
            if self._stamp == stamp:
                return
            is_racy = abs(time.time_ns() - stat.st_mtime_ns) < RACY_NS
            with os.scandir(self._folder) as entries:
                listed = {entry.name for entry in entries}
            self._stamp = None if is_racy else stamp
        except (FileNotFoundError, NotADirectoryError):
            listed, self._stamp = set(), None
        except EntryError as error:
            listed, self._stamp = set(), None
            self._on_unusable(None, error)
        except OSError:  # what was seen is still there, as far as anybody knows
            self._stamp = None
            return
        known = self._names.keys()
        for text in known - listed:
            self._forget(self._names[text], self.gone)
        for text in listed - known - self._unusable:
            name = EntryName.parse(text)
            if name is not None:
                self._names[text] = name
                self._by_first.setdefault(name.first, {})[text] = name
                if name.is_snapshot:
                    self._snapshot_starts.add(name.start)

    def _forget(self, name: EntryName, cause: RecentDigests) -> None:
        """Take a file out and remember the blocks it was matched for, or else its first, by the cause."""
        for digest in self._digests.pop(name.key, (bytes.fromhex(name.first),)):
            cause.add(digest)
        self._headers.pop(name.key, None)
        if self._names.pop(str(name), None):
            del self._by_first[name.first][str(name)]
            if not self._by_first[name.first]:
                del self._by_first[name.first]
