"""The RAM tier: runs of blocks under a byte budget, the least recently used leaf first; knows no files and no torch.

Blocks are stored in runs: consecutive blocks of one chain that were committed together, in one buffer. A block is
found by its hash and proven by its tokens and by its parent, which must be the very block matched before it.

A chain is touched from its tail to its root (as vLLM frees its blocks tail first), so a parent is always more recently
used than its children; its priority is never below theirs, and whoever pins a run pins its ancestors. The first
run of the lowest priority is therefore always a leaf: evicting needs no search and never leaves an orphan.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvchat.cache.block import Chain

if TYPE_CHECKING:
    import torch


class Block:
    """One block in RAM: the `index`-th of its run, `depth` blocks from the root (the first block has depth 1)."""

    __slots__ = ("depth", "digest", "index", "parent", "run", "tokens")

    def __init__(self, run: Run, index: int, parent: Block | None, digest: bytes, tokens: bytes) -> None:
        self.run = run
        self.index = index
        self.parent = parent
        self.digest = digest
        self.tokens = tokens
        self.depth: int = parent.depth + 1 if parent else 1


class Run:
    """Consecutive blocks with their encoded KV, immutable: `buffer` is uint8 [num_blocks * block_bytes]."""

    __slots__ = ("blocks", "buffer", "num_children", "num_pins", "parent", "priority")

    def __init__(self, parent: Block | None, chain: Chain, buffer: torch.Tensor, priority: int) -> None:
        """The blocks of `chain` that follow `parent`."""
        self.parent = parent
        self.buffer = buffer
        self.priority = priority
        self.num_pins = 0
        self.num_children = 0
        self.blocks: list[Block] = []
        for index in range(parent.depth if parent else 0, len(chain)):
            last = self.blocks[-1] if self.blocks else parent
            block = Block(self, len(self.blocks), last, chain.hashes[index], chain.block_tokens(index))
            self.blocks.append(block)

    @property
    def start(self) -> int:
        """Blocks between the root and this run's first block."""
        return self.blocks[0].depth - 1

    @property
    def num_bytes(self) -> int:
        """Bytes of the buffer."""
        return self.buffer.nbytes


class Pool:
    """Runs under a byte budget. Not safe for threads: its owner holds a lock."""

    def __init__(self, budget_bytes: int, on_evict: Callable[[Run], None] = lambda run: None) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.num_blocks = 0
        self._pinned_bytes = 0
        self._on_evict = on_evict
        self._runs: dict[Run, None] = {}
        self._index: dict[bytes, list[Block]] = {}
        # Runs that nobody pins, by priority, the least recently used first.
        self._idle: dict[int, OrderedDict[Run, None]] = {}

    @property
    def free_bytes(self) -> int:
        """Bytes that can be had without evicting."""
        return self.budget_bytes - self.used_bytes

    def __contains__(self, run: Run) -> bool:
        return run in self._runs

    def is_known(self, digest: bytes) -> bool:
        """Whether something by that name is here; whether it is what is meant, `find` and `match` prove."""
        return digest in self._index

    def find(self, parent: Block | None, digest: bytes, tokens: bytes) -> Block | None:
        """The block that follows `parent` and has these very tokens; None when it is not here."""
        candidates = self._index.get(digest, ())
        return next(
            (block for block in candidates if block.parent is parent and block.tokens == tokens), None
        )

    def match(self, chain: Chain) -> Block | None:
        """The last block of the longest prefix of `chain` that is here; None when there is none."""
        tail: Block | None = None
        index = self._index
        for number, digest in enumerate(chain.hashes):
            candidates = index.get(digest)
            if candidates is None:
                return tail
            tokens = chain.block_tokens(number)
            for block in candidates:
                if block.parent is tail and block.tokens == tokens:
                    tail = block
                    break
            else:
                return tail
        return tail

    def reserve(self, num_bytes: int) -> bool:
        """Evict until `num_bytes` more fit. False, with nothing evicted, when pinned runs leave no room for it."""
        if num_bytes > self.budget_bytes - self._pinned_bytes:
            return False
        while self.free_bytes < num_bytes:
            self._evict(self._victim())
        return True

    def insert(self, parent: Block | None, chain: Chain, buffer: torch.Tensor, priority: int = 0) -> Run:
        """Add the blocks of `chain` that follow `parent`, for which `reserve` has made room."""
        run = Run(parent, chain, buffer, priority)
        assert run.num_bytes <= self.free_bytes, "reserve before insert"
        assert parent is None or parent.run in self._runs, "a parent is in RAM before its child"
        self._runs[run] = None
        self.used_bytes += run.num_bytes
        self.num_blocks += len(run.blocks)
        if parent:
            parent.run.num_children += 1
        for block in run.blocks:
            self._index.setdefault(block.digest, []).append(block)
        self.touch(run.blocks[-1], priority)
        return run

    def touch(self, tail: Block, priority: int | None = None) -> None:
        """Make a chain the most recently used, its tail first; raise its priority to at least `priority`."""
        for run in ancestors(tail):
            if run.num_pins == 0:
                self._unlist(run)
            run.priority = run.priority if priority is None else max(run.priority, priority)
            if run.num_pins == 0:
                self._list(run)

    def pin(self, tail: Block) -> None:
        """Keep a chain until `unpin`; pins are counted."""
        for run in ancestors(tail):
            if run.num_pins == 0:
                self._unlist(run)
                self._pinned_bytes += run.num_bytes
            run.num_pins += 1

    def unpin(self, tail: Block) -> None:
        """Take back one `pin`; the chain is then the most recently used."""
        for run in ancestors(tail):
            run.num_pins -= 1
            assert run.num_pins >= 0, "unpinned more often than pinned"
            if run.num_pins == 0:
                self._pinned_bytes -= run.num_bytes
                self._list(run)

    def evict(self) -> bool:
        """Evict one run, the least recently used leaf of the lowest priority. False when all are pinned."""
        if not self._idle:
            return False
        self._evict(self._victim())
        return True

    def clear(self) -> None:
        """Evict everything that is not pinned."""
        while self.evict():
            pass

    def check_integrity(self) -> None:
        """Assert what always holds: accounts, index, no orphan, and every eviction's victim a leaf."""
        assert self.used_bytes == sum(run.num_bytes for run in self._runs) <= self.budget_bytes
        assert self.free_bytes + self.used_bytes == self.budget_bytes
        assert self._pinned_bytes == sum(run.num_bytes for run in self._runs if run.num_pins)
        assert self.num_blocks == sum(len(run.blocks) for run in self._runs)
        indexed = [block for blocks in self._index.values() for block in blocks]
        assert {id(block) for block in indexed} == {id(block) for run in self._runs for block in run.blocks}
        assert len(indexed) == self.num_blocks and all(self._index.values())
        children = dict.fromkeys(self._runs, 0)
        for run in self._runs:
            if run.parent:
                parent = run.parent.run
                assert parent in self._runs, "an orphan in RAM"
                assert parent.priority >= run.priority and parent.num_pins >= run.num_pins
                children[parent] += 1
        assert all(run.num_children == count for run, count in children.items())
        self._check_order()

    def _check_order(self) -> None:
        order = [run for priority in sorted(self._idle) for run in self._idle[priority]]
        assert all(self._idle.values()) and len(order) == sum(run.num_pins == 0 for run in self._runs)
        place = {run: number for number, run in enumerate(order)}
        for run in order:
            assert run in self._idle[run.priority] and run.num_pins == 0
            above = run.parent.run if run.parent else run
            assert place.get(above, len(order)) >= place[run], "a parent would go before its child"

    def _victim(self) -> Run:
        return next(iter(self._idle[min(self._idle)]))

    def _evict(self, run: Run) -> None:
        assert run.num_children == 0 and run.num_pins == 0, "only an idle leaf is evicted"
        self._unlist(run)
        del self._runs[run]
        self.used_bytes -= run.num_bytes
        self.num_blocks -= len(run.blocks)
        if run.parent:
            run.parent.run.num_children -= 1
        for block in run.blocks:
            candidates = self._index[block.digest]
            candidates.remove(block)
            if not candidates:
                del self._index[block.digest]
        self._on_evict(run)
        del run.buffer  # a run and its blocks know each other: don't wait for the garbage collector

    def _list(self, run: Run) -> None:
        self._idle.setdefault(run.priority, OrderedDict())[run] = None

    def _unlist(self, run: Run) -> None:
        idle = self._idle.get(run.priority)
        if idle and run in idle:
            del idle[run]
            if not idle:
                del self._idle[run.priority]


def ancestors(tail: Block) -> Iterator[Run]:
    """The runs of a chain, from the tail's to the root's."""
    block: Block | None = tail
    while block:
        yield block.run
        block = block.run.parent


def spans(tail: Block | None) -> Sequence[tuple[Run, int]]:
    """A chain as (run, how many of its blocks belong to the chain), from the root to the tail."""
    found: list[tuple[Run, int]] = []
    block = tail
    while block:
        found.append((block.run, block.index + 1))
        block = block.run.parent
    return found[::-1]


def block_at(tail: Block | None, depth: int) -> Block | None:
    """The block of a chain that is `depth` blocks from the root; None for 0."""
    held = (
        run.blocks[depth - run.start - 1] for run in (ancestors(tail) if tail else ()) if run.start < depth
    )
    return next(held, None) if depth else None


def default_ram_bytes() -> int:
    """A tenth of the machine's memory, or of the control group's limit where that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass
    return total // 10
