"""Token ids in, token ids out: keep what is cached, prefill the rest in chunks, decode. Knows no text."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial

import torch

from kvchat.cache.block import KVLayout
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.cache.stats import CacheStats
from kvchat.engine.batch import Batch
from kvchat.engine.decoding import Decoding
from kvchat.engine.drafting import PromptLookup
from kvchat.engine.foresight import foresight_of
from kvchat.engine.forwards import Forwards
from kvchat.engine.holding import Holding
from kvchat.engine.pace import Pace
from kvchat.engine.request import EngineEvent, Finish, Finished, Progress, Request, Reuse, Wanting, never
from kvchat.engine.sequence import LiveSequence
from kvchat.engine.speculation import Speculation
from kvchat.engine.stride import Stride, longest
from kvchat.errors import OutOfMemoryError
from kvchat.models.device import empty_device_cache
from kvchat.models.kinds import as_generated
from kvchat.models.kv_state import KVState, kv_layout
from kvchat.models.loaded import LoadedModel
from kvchat.models.pauses import Interrupted
from kvchat.models.reuse import Continuation, ReusePolicy
from kvchat.models.schedule import Schedule

CHUNK_TOKENS = 256
"""Tokens of one prefill forward at most."""
SNAPSHOT_TOKENS = 512
"""In a long prefill a snapshot is taken every so many tokens."""
SHARED_PRIORITY = 1
"""Of blocks that many conversations begin with, against 0 for those of one."""
PINNED_PRIORITY = 2
"""Of blocks that a person wants kept."""
STORED_AT_ONCE = 512
"""Of a long prompt, while others answer: storing all of it behind the answer would keep them waiting."""


class Engine:
    """One model with the cache behind it, for any number of live sequences. Not thread-safe: one thread owns it.

    Answers that are made at the same time meet in its `batch`. Guesses ahead `draft` tokens at a time, with None as many as pay.
    """

    def __init__(
        self, loaded: LoadedModel, *, chunk_tokens: int = CHUNK_TOKENS, draft: int | None = 0
    ) -> None:
        self.loaded = loaded
        self.chunk_tokens = chunk_tokens
        self.batch = Batch(loaded)
        self.pace = Pace()
        self.kv_layout: KVLayout | None = None
        """The shapes of one token's KV and of the recurrent states; None where neither can be taken up again. Known
        from the first sequence on."""
        can_draft = loaded.rule.continuation is Continuation.CHUNK
        self._foresight = foresight_of(draft, self.pace.costs) if can_draft else None
        self._holding = Holding(loaded.rule, self.pace)
        self._forwards = Forwards(loaded, self._make_room)

    def new_sequence(self) -> LiveSequence:
        """A conversation of which nothing is live; its buffers are there, if need be by one small forward."""
        state = self.loaded.new_state()
        if not state.planes and not state.states:
            self._forwards.forward([0], state)  # the first one is slow and says nothing of the pace
            self.kv_layout = kv_layout(state)
            state.keep(0)
        self.kv_layout = self.kv_layout or kv_layout(state)
        return LiveSequence(state, Speculation(PromptLookup(), self._foresight) if self._foresight else None)

    @property
    def cache(self) -> PrefixCache | None:
        """Where KV is kept beside the live states."""
        return self._holding.cache

    @cache.setter
    def cache(self, cache: PrefixCache | None) -> None:
        self._holding.cache = cache

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that one token takes in all layers; known from the first sequence on."""
        return self.kv_layout.bytes_per_token if self.kv_layout else 0

    def warm_up(self, sequence: LiveSequence) -> None:
        """Run three small forwards, so that the first answer does not pay for what is set up lazily, and so that the
        speed of prefilling is known. The sequence holds nothing afterwards."""
        length = min(64, self.loaded.context - 1)
        sequence.state.keep(0)
        for tokens in ([0] * min(length, 16), self.told(as_generated([0]))):
            self._compute(sequence, tokens)
        sequence.state.keep(0)
        self._compute(sequence, [0] * length)
        sequence.state.keep(0)

    def store(
        self,
        sequence: LiveSequence,
        num_tokens: int | None = None,
        *,
        priority: int = 0,
        is_kept: bool = True,
    ) -> None:
        """Give what is held of the first `num_tokens` (all of them by default) to the cache, if there is memory for it
        and it `is_kept`; what is held for nothing is let go of in any case."""
        state = sequence.state
        with suppress(OutOfMemoryError):
            own = priority or sequence.priority
            self._forwards.with_room(
                lambda: self._holding.store(state, num_tokens, priority=own, is_kept=is_kept), state
            )

    def close(self) -> None:
        """Let the cache write what it still has to write, within its bound."""
        if self.cache is not None:
            self.cache.close()

    def generate(
        self,
        sequence: LiveSequence,
        request: Request,
        is_cancelled: Callable[[], bool],
        is_over: Callable[[], bool] = never,
        is_paused: Callable[[], bool] = never,
    ) -> Iterator[EngineEvent]:
        """Answer `request.prompt` in a sequence; the last event is `Finished`.

        Whether it `is_over` is asked behind each token, once that was seen; then it ends with `Finish.STOP`. Once it
        `is_paused`, a forward behind the first token is left for when the next event is asked for. Between two events
        the state holds the KV of exactly `state.tokens`: it may be closed or raise at any point. Sequences may take turns.
        """
        request = replace(request, prompt=self.told(request.prompt))
        prompt = request.prompt
        assert 0 < len(prompt) < self.loaded.context, "the caller checks the context"
        started = time.perf_counter()
        reuse, logits = yield from self._prefill(sequence, request, is_cancelled, self.chunk_tokens)
        prefill_s = time.perf_counter() - started - reuse.kv_load_s
        if logits is None:
            self._count(request, reuse)
            done = len(sequence.state.tokens) - reuse.num_tokens
            yield Finished(Finish.CANCELLED, reuse, done, prefill_s, 0.0, 0)
            return
        decoding = Decoding(self._forwards, self.batch, sequence, request, is_paused)
        decode_s, started = 0.0, time.perf_counter()
        with closing(decoding.tokens(logits, is_cancelled, is_over)) as tokens:
            for token in tokens:
                if isinstance(token, Wanting):  # what the others do meanwhile takes this one's time
                    yield token
                    continue
                decode_s += time.perf_counter() - started
                yield token
                started = time.perf_counter()  # an answer that was begun ahead waits here for its message
                if decoding.num_generated == 1 and request.shared:
                    self._store_shared(sequence, request)
        decode_s += time.perf_counter() - started - decoding.paused_s
        if decoding.was_alone and sequence.speculation is None and decoding.num_generated > 1:
            self.pace.measure(1, decode_s / decoding.num_generated)
        self._count(request, reuse)
        prefilled = len(prompt) - reuse.num_tokens
        yield Finished(decoding.reason, reuse, prefilled, prefill_s, decode_s, decoding.num_generated)

    def warm(
        self,
        sequence: LiveSequence,
        tokens: Sequence[int],
        is_cancelled: Callable[[], bool],
        *,
        priority: int = SHARED_PRIORITY,
        chunk_tokens: int | None = None,
        store: bool = True,
    ) -> Iterator[Progress]:
        """Compute `tokens` ahead of use and `store` them; what a cancellation leaves is stored too.

        Nobody asked for them yet, so the statistics don't count them as asked. `chunk_tokens` is other than usual.
        """
        assert 0 < len(tokens) < self.loaded.context, "the caller checks the context"
        request = Request(self.told(tokens), stores=store)
        yield from self._prefill(sequence, request, is_cancelled, chunk_tokens or self.chunk_tokens)
        self.store(sequence, priority=priority, is_kept=store)

    def hold(
        self,
        sequence: LiveSequence,
        tokens: Sequence[int],
        is_cancelled: Callable[[], bool],
        *,
        chunk_tokens: int,
    ) -> Iterator[Progress]:
        """Compute `tokens` in a sequence for a message that is not sent yet: nothing of it is stored or counted."""
        assert 0 < len(tokens) < self.loaded.context, "the caller checks the context"
        request = Request(self.told(tokens), stores=False)
        yield from self._prefill(sequence, request, is_cancelled, chunk_tokens)

    def told(self, tokens: Sequence[int], num_tokens: int | None = None) -> list[int]:
        """`tokens` as the states and the cache know them, see `LoadedModel.told`."""
        return self.loaded.told(tokens, num_tokens)

    def _prefill(
        self, sequence: LiveSequence, request: Request, is_cancelled: Callable[[], bool], chunk_tokens: int
    ) -> Generator[Progress, None, tuple[Reuse, torch.Tensor | None]]:
        """Bring the state to the prompt; returns what was reused and the last token's logits, None when cancelled."""
        prompt, state = list(request.prompt), sequence.state
        points = self._snapshot_points(request)
        schedule = Schedule(prompt, self.loaded, self._fitting(chunk_tokens, state), points)
        stride, stored = Stride(self.pace, self.batch.clock), 0
        reuse = self._take_up(sequence, prompt, schedule) if request.reuse else Reuse(live=state.keep(0))
        total = len(prompt) - reuse.num_tokens
        yield Progress(0, total, reuse)
        logits: torch.Tensor | None = None
        while (start := len(state.tokens)) < len(prompt):
            end = schedule.end(start, stride.num_tokens if self.batch.is_open else None)
            begun = Progress(start - reuse.num_tokens, total, reuse)
            inside = partial(self._show_inside, sequence, begun, end - start)
            try:
                if is_cancelled():
                    raise Interrupted
                with stride.measured(end - start):
                    logits = self._compute(sequence, prompt[start:end], is_cancelled, inside)
            except Interrupted:
                return reuse, None
            if end in points:
                state.take()
            if self._holding.is_due(state) or (self.batch.is_open and end - stored >= STORED_AT_ONCE):
                stored = end
                self._store_shared(sequence, request)
                self.store(sequence, len(state.tokens), is_kept=request.stores)
            yield Progress(len(state.tokens) - reuse.num_tokens, total, reuse)
        assert logits is not None, "at least one token is computed"
        return reuse, logits

    def _fitting(self, chunk_tokens: int, state: KVState) -> int:
        """How many tokens one forward is to compute, at most `chunk_tokens`. The bits of exact models don't depend on it."""
        is_deaf = self.loaded.may_lose(state) or not self.loaded.network.num_layers
        return longest(self.pace, chunk_tokens, is_deaf=is_deaf)

    def _store_shared(self, sequence: LiveSequence, request: Request) -> None:
        shared = min(request.shared, len(request.prompt))
        self.store(sequence, shared, priority=SHARED_PRIORITY, is_kept=request.stores)

    def _take_up(self, sequence: LiveSequence, prompt: Sequence[int], schedule: Schedule) -> Reuse:
        return self._forwards.with_room(
            lambda: self._holding.take_up(sequence.state, prompt, schedule), sequence.state
        )

    def _count(self, request: Request, reuse: Reuse) -> None:
        if self.cache is None or not request.reuse:
            return
        asked = CacheStats(
            asked_tokens=len(request.prompt),
            live_tokens=reuse.live,
            tier_tokens=reuse.tiers,
            saved_s=self.pace.saved_s(reuse.num_tokens),
        )
        self.cache.stats.add(asked)

    def _show_inside(self, sequence: LiveSequence, begun: Progress, num_tokens: int, num_layers: int) -> None:
        """Between two layers others may go on; and it is as if so large a share of the forward's tokens were done."""
        self.batch.between_layers()
        share = (num_layers - 1) / self.loaded.network.num_layers
        sequence.on_progress(replace(begun, done=begun.done + int(share * num_tokens)))

    def _compute(
        self,
        sequence: LiveSequence,
        tokens: list[int],
        is_cancelled: Callable[[], bool] = never,
        tell: Callable[[int], None] = lambda num_layers: None,
    ) -> torch.Tensor:
        started = self.batch.clock()
        logits = self._forwards.forward(tokens, sequence.state, is_cancelled, tell)
        self.pace.measure(len(tokens), self.batch.clock() - started)
        return logits

    def _make_room(self, state: KVState) -> None:
        """Let go of all memory that can be had again: blocks in RAM, and what the state in use holds in reserve."""
        if self.cache is not None:
            self.cache.clear_ram()
        with suppress(RuntimeError):  # moving needs some memory itself
            state.shrink()
        empty_device_cache(self.loaded.device)

    def _snapshot_points(self, request: Request) -> list[int]:
        """Where snapshots are taken: behind what many prompts share, every so often, and before the last token, for a retry."""
        length = len(request.prompt)
        if self.loaded.rule.policy is not ReusePolicy.SNAPSHOTS:
            return []
        points = {request.shared, length - 1, *range(SNAPSHOT_TOKENS, length, SNAPSHOT_TOKENS)}
        return sorted(point for point in points if 0 < point < length)
