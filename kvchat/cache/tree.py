"""Runs of blocks, found by the hash of their first block and proven by their tokens and by the run that they continue.

A run is consecutive blocks of one chain that were stored together; a snapshot is a run of one block. Whatever a tier
keeps in its runs, the tree asks only what stands in `Run`. Knows no torch, no files, no budget.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from kvchat.cache.base import Piece
from kvchat.cache.block import Chain


class Run(Protocol):
    """Blocks from block `start` of a chain on. `above` is the `id` of the run with the block before, None at the root."""

    @property
    def id(self) -> Hashable:
        """What no other run of the tree is called."""

    @property
    def above(self) -> Hashable:
        """The run that this one continues, somewhere in it."""

    @property
    def first(self) -> bytes:
        """The hash of its first block."""

    @property
    def start(self) -> int:
        """Blocks before it."""

    @property
    def is_state(self) -> bool:
        """Whether it is a snapshot."""

    @property
    def priority(self) -> int:
        """How long it is to be kept, against others."""

    def ids(self) -> bytes | None:
        """Its own token ids; None when they turned out to be unusable."""


R = TypeVar("R", bound=Run)
T = TypeVar("T")


class Tree(Generic[R]):
    """The runs of one tier for one model. Not safe for threads.

    A conversation is looked up again and again as it grows, so a match goes on from where the one before stood as long as
    the chains are equal and nothing has changed up to there.
    """

    def __init__(self) -> None:
        self._by_first: dict[bytes, tuple[R, ...]] = {}
        self._walk = _Walk()
        self.num_kept = 0
        """How many of the pieces matched last had been matched before."""

    def __iter__(self) -> Iterator[R]:
        return (run for runs in self._by_first.values() for run in runs)

    def knows(self, first: bytes) -> bool:
        """Whether there is a run that may begin with the block of this hash; `match` proves it."""
        return first in self._by_first

    def add(self, run: R) -> None:
        """Take a run in."""
        self._by_first[run.first] = (*self._by_first.get(run.first, ()), run)
        self._walk.changed = min(self._walk.changed, run.start)

    def remove(self, run: R) -> None:
        """Take a run out that is here."""
        if run.id in self._walk.reached:
            self.forget()
        left = tuple(other for other in self._by_first[run.first] if other is not run)
        if left:
            self._by_first[run.first] = left
        else:
            del self._by_first[run.first]

    def forget(self) -> None:
        """Match anew from the root on: what was found before may have changed."""
        self._walk = _Walk()

    def match(self, chain: Chain) -> tuple[Piece, ...]:
        """The runs that a chain's blocks lie in, from the root on, as far as they reach without a gap.

        Of the runs that hold a block the one that reaches furthest is taken, which makes the fewest pieces.
        """
        walk = (
            self._walk if 2 * len(chain) > len(self._walk.chain) else _Walk()
        )  # a short one is no successor
        at, _, best, end = walk.go_back(chain)
        self.num_kept = len(walk.pieces)
        for block, digest in enumerate(chain.hashes[at:], at):
            if block == at:
                walk.marks.append(_Mark(at, len(walk.reached), best, end))
            for run in self._by_first.get(digest, ()):
                if run.start != block or walk.reached.get(run.above, -1) < block:
                    continue
                ids = run.ids()
                if ids is None:  # maybe only now
                    walk.changed = min(walk.changed, block)
                equal = 0 if ids is None else chain.num_equal(block, ids, is_state=run.is_state)
                if equal:
                    walk.reached[run.id] = block + equal
                if block + equal > end:
                    best, end = run, block + equal
            if block == at:
                if best is None or end <= at:
                    break
                walk.pieces.append(Piece(best, at, end, best.priority))
                at = end
        return tuple(walk.pieces)


class _Mark(NamedTuple):
    """A walk before `block`, where a piece begins: how many runs were found, and which reaches furthest."""

    block: int
    num_reached: int
    best: Any
    end: int


class _Walk:
    """How a chain was matched: its pieces, a mark before each and where it ended, and how far each run found reaches."""

    def __init__(self) -> None:
        self.chain = Chain(1, b"", ())
        self.pieces: list[Piece] = []
        self.marks: list[_Mark] = []
        self.reached: dict[Hashable, int] = {None: 0}
        self.changed = sys.maxsize
        """From this block on runs were added since."""

    def go_back(self, chain: Chain) -> _Mark:
        """Forget what need not be so for another chain, and go on with that from the mark that is given.

        What reaches to where the chains part, or to where the shorter one ends, may reach further or less far now.
        """
        common = min(self.chain.num_equal(0, chain.tokens), self.chain.num_full, chain.num_full)
        mark = _Mark(0, 1, None, 0)
        while self.marks and (last := self.marks.pop()).block:
            if last.block <= min(common, self.changed) and last.end < common:
                mark = last
                break
        del self.pieces[len(self.marks) :]
        while len(self.reached) > mark.num_reached:
            self.reached.popitem()
        self.chain, self.changed = chain, sys.maxsize
        return mark


def lineage(run: T | None) -> Iterator[T]:
    """A run that knows its `parent`, that one, and so on, as far as they are here; nothing for None."""
    above: Any = run
    while above:
        yield above
        above = above.parent


def lineages(tails: Iterable[T | None]) -> set[T]:
    """Runs and all that they continue, each looked at once, however many of them go on from one another."""
    found: set[T] = set()
    for tail in tails:
        for run in lineage(tail):
            if run in found:
                break
            found.add(run)
    return found


class RecentDigests:
    """A bounded set of digests that forgets the one added longest ago."""

    def __init__(self, limit: int = 65_536) -> None:
        self._limit = limit
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, digest: bytes) -> None:
        """Remember a digest, the latest."""
        self._digests[digest] = None
        self._digests.move_to_end(digest)
        if len(self._digests) > self._limit:
            self._digests.popitem(last=False)
