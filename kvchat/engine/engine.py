"""Token ids in, token ids out: keep what is cached, prefill the rest in chunks, decode. Knows no text."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace

import torch

from kvchat.cache.block import KVLayout
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.cache.stats import CacheStats
from kvchat.engine.decoding import Decoding
from kvchat.engine.forwards import Forwards
from kvchat.engine.holding import Holding
from kvchat.engine.pace import Pace
from kvchat.engine.request import EngineEvent, Finish, Finished, Progress, Request, Reuse
from kvchat.engine.speculation import Drafts, Speculation
from kvchat.errors import OutOfMemoryError
from kvchat.models.device import empty_device_cache
from kvchat.models.kinds import as_generated, ids_of
from kvchat.models.kv_state import kv_layout
from kvchat.models.loaded import LoadedModel
from kvchat.models.reuse import Continuation, ReusePolicy
from kvchat.models.schedule import Schedule

CHUNK_TOKENS = 256
"""Tokens of one prefill forward: what a cancellation waits for, and what it keeps."""
SNAPSHOT_TOKENS = 512
"""In a long prefill a snapshot is taken every so many tokens."""
SHARED_PRIORITY = 1
"""Of blocks that many conversations begin with, against 0 for those of one."""
PINNED_PRIORITY = 2
"""Of blocks that a person wants kept."""


class Engine:
    """One model and the live KV of one conversation at a time. Not thread-safe: one thread owns it."""

    def __init__(
        self, loaded: LoadedModel, *, chunk_tokens: int = CHUNK_TOKENS, speculation: Speculation | None = None
    ) -> None:
        self.loaded = loaded
        self.speculation = speculation if loaded.rule.continuation is Continuation.CHUNK else None
        self.state = loaded.new_state()
        self.chunk_tokens = chunk_tokens
        self.pace = Pace(self.speculation.costs if self.speculation else None)
        self._holding = Holding(self.state, loaded.rule, self.pace)
        self._forwards = Forwards(loaded, self._make_room)

    @property
    def cache(self) -> PrefixCache | None:
        """Where KV is kept beside the live state."""
        return self._holding.cache

    @cache.setter
    def cache(self, cache: PrefixCache | None) -> None:
        self._holding.caches[0] = cache

    def set_long_cache(self, cache: PrefixCache | None) -> None:
        """Where KV of conversations beyond LongRoPE's threshold is kept: none of it is valid in a shorter one."""
        self._holding.caches[1] = cache

    @property
    def prefill_s_per_token(self) -> float:
        """What computing many tokens takes, in seconds a token; 0 until it was measured."""
        return self.pace.prefill_s_per_token

    def touch(self) -> None:
        """Learn the shapes of the model's KV, from one small forward where they are not known before."""
        if not self.state.planes and not self.state.states:
            self._forwards.forward([0], self.state)  # the first one is slow and says nothing of the pace
            self.state.keep(0)

    def measured(self) -> Callable[[int], float]:
        """How long forwards take, in seconds by number of tokens, after warming up."""
        self.warm_up()
        return self.pace.forward_s

    def warm_up(self) -> None:
        """Run three small forwards, so that the first answer does not pay for what is set up lazily, and so that the
        speed of prefilling is known."""
        length = min(64, self.loaded.context - 1)
        for tokens in ([0] * min(length, 16), self.told(as_generated([0]))):
            self._compute(tokens)
        self.state.keep(0)
        self._compute([0] * length)
        self.state.keep(0)

    @property
    def drafts(self) -> Drafts:
        """What was guessed ahead since the model was loaded."""
        return self.speculation.drafts if self.speculation else Drafts()

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that one token takes in all layers; known after the first forward."""
        return sum(plane.shape[0] * plane.shape[2] * plane.element_size() for plane in self.state.planes)

    @property
    def kv_layout(self) -> KVLayout | None:
        """The shapes of one token's KV and of the recurrent states; None where neither can be taken up again. Known
        after the first forward."""
        return kv_layout(self.state)

    def store(self, num_tokens: int | None = None, *, priority: int = 0) -> None:
        """Give what is held of the first `num_tokens` (all of them by default) to the cache, if there is memory for it."""
        with suppress(OutOfMemoryError):
            self._forwards.with_room(lambda: self._holding.store(num_tokens, priority=priority))

    def close(self) -> None:
        """Let the cache write what it still has to write, within its bound."""
        for cache in self._holding.caches:
            if cache is not None:
                cache.close()

    def generate(self, request: Request, is_cancelled: Callable[[], bool]) -> Iterator[EngineEvent]:
        """Answer `request.prompt`; the last event is `Finished`.

        Between two events the state holds the KV of exactly `state.tokens`, whatever happens: it may be closed or
        raise at any point. At least one token of the prompt is computed. `prompt` must be shorter than the context.
        """
        request = replace(request, prompt=self.told(request.prompt))
        prompt = request.prompt
        assert 0 < len(prompt) < self.loaded.context, "the caller checks the context"
        started = time.perf_counter()
        reuse, logits = yield from self._prefill(request, is_cancelled, self.chunk_tokens)
        if request.reuse:
            self._count(prompt, reuse)
        prefill_s = time.perf_counter() - started - reuse.kv_load_s
        if logits is None:
            done = len(self.state.tokens) - reuse.num_tokens
            yield Finished(Finish.CANCELLED, reuse, done, prefill_s, 0.0, 0)
            return
        decoding = Decoding(self._forwards, self.state, request, self.speculation)
        started = time.perf_counter()
        with closing(decoding.tokens(logits, is_cancelled)) as tokens:
            for token in tokens:
                yield token
                if decoding.num_generated == 1 and request.shared:
                    self.store(min(request.shared, len(prompt)), priority=SHARED_PRIORITY)
        decode_s = time.perf_counter() - started
        if self.speculation is None and decoding.num_generated > 1:
            self.pace.measure(1, decode_s / decoding.num_generated)
        prefilled = len(prompt) - reuse.num_tokens
        yield Finished(decoding.reason, reuse, prefilled, prefill_s, decode_s, decoding.num_generated)

    def warm(
        self,
        tokens: Sequence[int],
        is_cancelled: Callable[[], bool],
        *,
        priority: int = SHARED_PRIORITY,
        chunk_tokens: int | None = None,
    ) -> Iterator[Progress]:
        """Compute `tokens` ahead of use and store them; what a cancellation leaves is stored too.

        Nobody asked for them yet, so the statistics don't count them as asked. `chunk_tokens` is other than usual.
        """
        assert 0 < len(tokens) < self.loaded.context, "the caller checks the context"
        yield from self._prefill(Request(self.told(tokens)), is_cancelled, chunk_tokens or self.chunk_tokens)
        self.store(priority=priority)

    def told(self, tokens: Sequence[int]) -> list[int]:
        """`tokens` as the state and the cache know them: of their kinds where these make a difference."""
        return list(tokens) if self.loaded.is_exact else ids_of(tokens)

    def _prefill(
        self, request: Request, is_cancelled: Callable[[], bool], chunk_tokens: int
    ) -> Generator[Progress, None, tuple[Reuse, torch.Tensor | None]]:
        """Bring the state to the prompt; returns what was reused and the last token's logits, None when cancelled."""
        prompt = list(request.prompt)
        self.loaded.prepare(self.state, len(prompt))
        points = self._snapshot_points(request)
        schedule = Schedule(prompt, self.loaded, chunk_tokens, points)
        reuse = self._take_up(prompt, schedule) if request.reuse else Reuse(live=self.state.keep(0))
        total = len(prompt) - reuse.num_tokens
        yield Progress(0, total, reuse)
        logits: torch.Tensor | None = None
        while (start := len(self.state.tokens)) < len(prompt):
            if is_cancelled():
                return reuse, None
            end = schedule.end(start)
            logits = self._compute(prompt[start:end])
            if end in points:
                self.state.take()
            if self._holding.is_due:
                self.store(request.shared, priority=SHARED_PRIORITY)
                self.store(len(self.state.tokens))
            yield Progress(len(self.state.tokens) - reuse.num_tokens, total, reuse)
        assert logits is not None, "at least one token is computed"
        return reuse, logits

    def _take_up(self, prompt: Sequence[int], schedule: Schedule) -> Reuse:
        return self._forwards.with_room(lambda: self._holding.take_up(prompt, schedule))

    def _count(self, prompt: Sequence[int], reuse: Reuse) -> None:
        if self.cache is None:
            return
        asked = CacheStats(
            asked_tokens=len(prompt),
            live_tokens=reuse.live,
            tier_tokens=reuse.tiers,
            saved_s=self.pace.saved_s(reuse.num_tokens),
        )
        self.cache.stats.add(asked)

    def _compute(self, tokens: list[int]) -> torch.Tensor:
        started = time.perf_counter()
        logits = self._forwards.forward(tokens, self.state)
        self.pace.measure(len(tokens), time.perf_counter() - started)
        return logits

    def _make_room(self) -> None:
        """Let go of all memory that can be had again: blocks in RAM, and what the state holds in reserve."""
        if self.cache is not None:
            self.cache.clear_ram()
        with suppress(RuntimeError):  # moving needs some memory itself
            self.state.shrink()
        empty_device_cache(self.loaded.device)

    def _snapshot_points(self, request: Request) -> list[int]:
        """Where in a prompt snapshots are taken: behind what many prompts share, every so often, and before its last
        token, from where the answer can be tried again."""
        length = len(request.prompt)
        if self.loaded.rule.policy is not ReusePolicy.SNAPSHOTS:
            return []
        points = {request.shared, length - 1, *range(SNAPSHOT_TOKENS, length, SNAPSHOT_TOKENS)}
        return sorted(point for point in points if 0 < point < length)
