"""PrefixCache: match -> lease -> load -> commit, a loop over tiers; knows no model, no text, no terminal.

The arena, which is exact to the token, belongs to the caller: it is handed in as planes [heads, capacity, dim], one a K
and one a V of each layer. What recurrent layers hold is handed in beside it, and stored as a snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from kvchat.cache.base import (
    CacheSettings,
    Committed,
    Ended,
    Filled,
    Forecast,
    Match,
    Piece,
    Span,
    Tier,
    Warn,
)
from kvchat.cache.block import TOKEN_BYTES, Chain, Chains, KVLayout, chain_root, id_bytes
from kvchat.cache.disk import open_disk
from kvchat.cache.encoding import Arena, Encoding
from kvchat.cache.entry import FolderMeta
from kvchat.cache.filling import Filling, Given
from kvchat.cache.stats import CacheStats, Rate, StatsCounter, TierUse
from kvchat.cache.writer import Job, Writer

if TYPE_CHECKING:
    import torch

_WORST = (Ended.FIRST_USE, Ended.NEW_TEXT, Ended.EVICTED, Ended.CORRUPT)
"""Of the reasons that several tiers give, the last one counts."""


class PrefixCache:
    """The KV of every prefix that was computed, by its tokens.

    `load` and `commit` are for the thread that owns the arena; all else may be called from any thread.
    """

    def __init__(
        self,
        layout: KVLayout,
        fingerprint: bytes,
        settings: CacheSettings,
        *,
        meta: Mapping[str, str] | None = None,
        warn: Warn = lambda message: None,
    ) -> None:
        """A cache for one model. `meta` describes it to whoever lists the folder; `warn` takes one line at a time."""
        self.settings = settings
        self.stats = settings.stats or StatsCounter()
        self.root = chain_root(layout, fingerprint, settings.block_size, settings.encoding)
        """The root of all chains: fingerprint, layout, block size, encoding and format version in one digest."""
        self._layout = layout
        self._chains = Chains(self.root, settings.block_size, settings.hash_function, bool(layout.planes))
        self._encoding = Encoding(layout, settings.encoding, settings.block_size)
        sizes = self._encoding.block_bytes, self._encoding.state_bytes
        shared = FolderMeta(layout, settings.encoding, settings.block_size, *sizes, dict(meta or {}))
        self._disk = open_disk(settings, self.root, shared, stats=self.stats, warn=warn)
        behind = (*([self._disk] if self._disk else []), *settings.further)
        self._writer = Writer(behind if settings.mode == "rw" else ())
        learned = self._disk.learned() if self._disk else None
        self._filling = Filling(settings, self._encoding, self._writer, self.stats, learned)
        self._ram = self._filling.ram
        self._tiers: dict[str, Tier] = {tier.name: tier for tier in (self._ram, *behind)}
        self._rates = {name: Rate(2e9 if name == self._ram.name else 5e8) for name in self._tiers}

    def usage(self) -> tuple[TierUse, ...]:
        """How much of each tier is used, the fastest first; what lies on disk is counted anew each time."""
        budgets = {name: tier.budget_bytes for name, tier in self._tiers.items()}
        budgets[self._ram.name] = self.settings.ram_bytes  # with what passes through on its way to the others
        return tuple(TierUse(name, tier.used_bytes, budgets[name]) for name, tier in self._tiers.items())

    def match(self, tokens: Sequence[int]) -> Match:
        """The longest stored prefix of `tokens`; changes nothing."""
        if self.settings.mode == "off":
            return Match(Chain(self.settings.block_size, b"", ()), (), Ended.OFF)
        chain = self._chains.blocks(tokens)
        if not self._layout.states:
            return self._match_blocks(chain)
        return self._match_state(id_bytes(tokens), chain)

    def contains(self, tokens: Sequence[int], *, priority: int = -1) -> dict[str, int]:
        """How many of `tokens` each tier holds by itself, from the root on, at no less than a priority; changes nothing.

        Where a snapshot is needed to take anything up again, the tier that holds the deepest one counts.
        """
        if self.settings.mode == "off":
            return {}
        if self._layout.states:
            found = self.match(tokens).state
            is_kept = found is not None and found.pieces[-1].priority >= priority
            return {found.tier: found.end} if found and is_kept else {}
        chain = self._chains.blocks(tokens)
        held = {name: tier.match(chain) for name, tier in self._tiers.items()}
        return {name: _num_kept(pieces, priority) * chain.block_size for name, pieces in held.items()}

    def tip(self, tokens: Sequence[int]) -> str:
        """The hash of what would be stored last of `tokens`, as hex: a snapshot's or a full block's; empty for none."""
        if self._layout.states:
            return self._chains.state(tokens).hashes[-1].hex() if tokens else ""
        chain = self._chains.blocks(tokens)
        return chain.hashes[-1].hex() if len(chain) else ""

    @contextmanager
    def lease(self, match: Match) -> Iterator[Match]:
        """Pin what a match found, and count it as used now; matches anew if it was evicted meanwhile."""
        while not self._pin(match):
            match = self.match(np.frombuffer(match.chain.tokens, "<i4").tolist())
        try:
            self._ram.use(match.chain)
            yield match
        finally:
            for span in match.spans:
                self._tiers[span.tier].unpin(span.pieces)

    def load(
        self,
        match: Match,
        planes: Sequence[torch.Tensor],
        start: int,
        end: int,
        *,
        states: Sequence[torch.Tensor] = (),
    ) -> Filled:
        """Fill the arena's tokens [start, end), token-exact, from what is leased.

        `end` may come back smaller, down to `start`, where a file turned out to be gone or corrupt; what is before it
        is right. With a snapshot it is all, `states` too, or nothing: then `end` comes back as 0 and `states` unchanged.
        """
        began = time.perf_counter()
        arena = Arena(planes, states)
        blocks = [span for span in match.spans if not span.is_state]
        blocks_end = blocks[-1].end if blocks else 0
        at, end = start, max(start, min(end, blocks_end))
        tokens: dict[str, int] = {}
        for span in blocks:
            stop = min(end, span.end)
            if at < stop:
                reached = self._load_blocks(span, arena, at, stop)
                tokens[span.tier] = reached - at
                at = reached
                if at < stop:
                    break
        if match.state:
            is_loaded = at >= blocks_end and self._load_state(match.state, match.chain, arena)
            at, tokens = (match.num_tokens, tokens) if is_loaded else (0, {})
        seconds = time.perf_counter() - began
        self.stats.add(CacheStats(load_s=seconds))
        return Filled(at, tokens, seconds)

    def commit(
        self,
        tokens: Sequence[int],
        planes: Sequence[torch.Tensor],
        length: int,
        *,
        states: Sequence[torch.Tensor] = (),
        priority: int = 0,
        first: int = 0,
    ) -> Committed:
        """Store the full blocks of `tokens[:length]`, whose KV lies in the arena from token `first` on.

        With `states`, which are those behind all of `tokens[:length]`, a snapshot too. What RAM can't hold, from the root
        on, goes to the other tiers alone. Writing to these goes on in the background.
        """
        began = time.perf_counter()
        chain = self._chains.state(tokens[:length]) if states else self._chains.blocks(tokens[:length])
        if self.settings.mode != "rw" or not (planes or states):
            return Committed(0, 0, 0.0, is_whole=False)
        given = Given(chain, Arena(planes, states), priority, first, began + self.settings.wait_s)
        committed = self._filling.commit(given)
        blocks, num_bytes = committed.num_blocks, committed.num_bytes
        self.stats.add(CacheStats(stored_blocks=blocks, stored_bytes=num_bytes, store_s=committed.seconds))
        return committed

    def note(self) -> bytes:
        """What was kept by `keep_note` last, by this process or another; empty for nothing."""
        return self._disk.note() if self._disk else b""

    def keep_note(self, content: bytes) -> None:
        """Keep a short note beside this model's files, in the background; it goes when they are cleared."""
        if self._disk:
            self._writer.submit(Job(partial(self._disk.keep_note, content)))

    def drain(self, timeout_s: float) -> bool:
        """Wait until the slower tiers have everything that was committed. False when the time was not enough."""
        return self._writer.drain(timeout_s)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Drain and end the writer, within the bound. False when something was left unwritten."""
        self._filling.queue_refused()
        return self._writer.close(timeout_s)

    def forecast(self) -> Forecast | None:
        """What RAM would forget next, and why; None when it holds nothing that can go."""
        return self._ram.forecast(self.settings.block_size)

    def clear_ram(self) -> None:
        """Evict everything from RAM that nobody uses."""
        self._ram.clear()

    def check_integrity(self) -> None:
        """Assert what always holds of the RAM tier."""
        self._ram.check_integrity()

    def _match_blocks(self, chain: Chain) -> Match:
        """The longest stored prefix of a chain's full blocks, each part of it in the fastest tier."""
        spans, at = list[Span](), 0
        for tier in self._tiers.values() if self._layout.planes else ():
            if at == chain.num_full:
                break
            pieces = tier.match(chain)
            end = min(pieces[-1].end, chain.num_full) if pieces else 0
            if end > at:
                spans.append(self._span(tier, chain, at, end, pieces))
                at = end
        ended = Ended.COMPLETE if at == chain.num_full else self._why_missing(chain.hashes[at])
        return Match(chain, tuple(spans), ended)

    def _match_state(self, ids: bytes, chain: Chain) -> Match:
        """The deepest snapshot that is a prefix of `ids` and whose blocks are stored, with these."""
        blocks = self._match_blocks(chain)
        deepest = blocks.num_tokens if self._layout.planes else chain.num_tokens()
        ended = self._why_missing(b"") if deepest == chain.num_tokens() else blocks.ended
        ends = {end for tier in self._tiers.values() for end in tier.state_ends()}
        for end in sorted((end for end in ends if 0 < end * TOKEN_BYTES <= len(ids)), reverse=True):
            if end // chain.block_size * chain.block_size > deepest:
                continue
            wanted = self._chains.state_at(chain, ids[: end * TOKEN_BYTES])
            if state := self._find_state(wanted):
                is_all = end * TOKEN_BYTES == len(ids)
                before = self._match_blocks(wanted).spans
                return Match(wanted, (*before, state), Ended.COMPLETE if is_all else ended)
            why = self._why_missing(wanted.hashes[-1])
            ended = why if why in (Ended.EVICTED, Ended.CORRUPT) else ended
        return Match(chain.prefix(0), (), ended)

    def _find_state(self, chain: Chain) -> Span | None:
        """The snapshot that a chain ends with, in the fastest tier that has it."""
        for tier in self._tiers.values():
            pieces = tier.match(chain) if tier.knows(chain.hashes[-1]) else ()
            if pieces and pieces[-1].end == len(chain):
                return self._span(tier, chain, chain.num_full, len(chain), pieces)
        return None

    def _span(self, tier: Tier, chain: Chain, start: int, end: int, pieces: Sequence[Piece]) -> Span:
        num_bytes = self._encoding.num_bytes(chain, start, end)
        load_s = num_bytes / self._rates[tier.name].bytes_per_s
        is_state = end > chain.num_full
        first = self._encoding.rest(chain).start if is_state else chain.num_tokens(start)
        return Span(tier.name, first, chain.num_tokens(end), load_s, pieces, is_state)

    def _why_missing(self, digest: bytes) -> Ended:
        return max((tier.why_missing(digest) for tier in self._tiers.values()), key=_WORST.index)

    def _pin(self, match: Match) -> bool:
        """Pin all spans of a match, or none."""
        for number, span in enumerate(match.spans):
            if not self._tiers[span.tier].pin(span.pieces):
                for pinned in match.spans[:number]:
                    self._tiers[pinned.tier].unpin(pinned.pieces)
                return False
        return True

    def _load_blocks(self, span: Span, arena: Arena, start: int, end: int) -> int:
        """Fill the tokens [start, end) from one span; returns how far that went."""
        began = time.perf_counter()
        size, at = self.settings.block_size, start
        for stored in self._tiers[span.tier].read(span.pieces, start // size, -(-end // size)):
            at = self._encoding.decode(stored, arena, at, end)
        num_bytes = (at - start) * self._encoding.block_bytes // size
        self._rates[span.tier].measure(num_bytes, time.perf_counter() - began)
        return at

    def _load_state(self, span: Span, chain: Chain, arena: Arena) -> bool:
        """Fill the states, and the arena behind the full blocks, from a snapshot; False when it can't be used."""
        began = time.perf_counter()
        for stored in self._tiers[span.tier].read(span.pieces, chain.num_full, len(chain)):
            self._encoding.decode_state(stored, arena, chain)
            self._rates[span.tier].measure(stored.data.nbytes, time.perf_counter() - began)
            self._writer.store(chain, lambda start: (), 0)  # counts it as used now
            return True
        return False


def _num_kept(pieces: Sequence[Piece], priority: int) -> int:
    """How many blocks are held from the root on at no less than a priority: a parent never has less than its child."""
    return max((piece.end for piece in pieces if piece.priority >= priority), default=0)
