"""Token ids in, token ids out: keep what is cached, prefill the rest in chunks, decode. Knows no text."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

import torch

from kvchat.cache.block import KVLayout
from kvchat.cache.match import Ended, Match
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.cache.stats import CacheStats
from kvchat.engine.decoding import Decoding
from kvchat.engine.request import EngineEvent, Finish, Finished, Progress, Request, Reuse
from kvchat.engine.speculation import Drafts, Speculation
from kvchat.models.kv_state import common_prefix
from kvchat.models.loader import LoadedModel

CHUNK_TOKENS = 256
"""Tokens of one prefill forward: what a cancellation waits for, and what it keeps."""
MEASURED_TOKENS = 32
"""Smaller prefill chunks say nothing about the speed of larger ones."""
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
        self.speculation = speculation
        self.state = loaded.new_state()
        self.chunk_tokens = chunk_tokens
        self.cache: PrefixCache | None = None
        self.prefill_s_per_token = 0.0  # measured

    def warm_up(self) -> None:
        """Run three small forwards, so that the first answer does not pay for what is set up lazily, and so that the
        speed of prefilling is known."""
        length = min(64, self.loaded.context - 1)
        for tokens in ([0] * min(length, 16), [0]):
            self.loaded.forward(tokens, self.state)
        self.state.keep(0)
        started = time.perf_counter()
        self.loaded.forward([0] * length, self.state)
        self.prefill_s_per_token = (time.perf_counter() - started) / length
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
        """The shapes of one token's KV; None where KV can't be cut into blocks. Known after the first forward."""
        planes = self.state.planes
        shapes = tuple((plane.shape[0], plane.shape[2]) for plane in planes)
        return KVLayout(shapes, str(planes[0].dtype).removeprefix("torch.")) if planes else None

    def store(self, num_tokens: int | None = None, *, priority: int = 0) -> None:
        """Give the blocks of the first `num_tokens` that are held (all of them by default) to the cache."""
        if self.cache is None or not self.state.tokens:
            return
        length = len(self.state.tokens) if num_tokens is None else min(num_tokens, len(self.state.tokens))
        with torch.inference_mode():
            self.cache.commit(self.state.tokens, self.state.planes, length, priority=priority)

    def close(self) -> None:
        """Let the cache write what it still has to write, within its bound."""
        if self.cache is not None:
            self.cache.close()

    def generate(self, request: Request, is_cancelled: Callable[[], bool]) -> Iterator[EngineEvent]:
        """Answer `request.prompt`; the last event is `Finished`.

        Between two events the state holds the KV of exactly `state.tokens`, whatever happens: it may be closed or
        raise at any point. At least one token of the prompt is computed. `prompt` must be shorter than the context.
        """
        prompt = list(request.prompt)
        assert 0 < len(prompt) < self.loaded.context, "the caller checks the context"
        started = time.perf_counter()
        reuse, logits = yield from self._prefill(prompt, request.reuse, is_cancelled)
        prefill_s = time.perf_counter() - started - reuse.kv_load_s
        if logits is None:
            done = len(self.state.tokens) - reuse.num_tokens
            yield Finished(Finish.CANCELLED, reuse, done, prefill_s, 0.0, 0)
            return
        decoding = Decoding(self.loaded, self.state, request, self.speculation)
        started = time.perf_counter()
        with closing(decoding.tokens(logits, is_cancelled)) as tokens:
            for token in tokens:
                yield token
                if decoding.num_generated == 1 and request.shared:
                    self.store(min(request.shared, len(prompt)), priority=SHARED_PRIORITY)
        decode_s = time.perf_counter() - started
        prefilled = len(prompt) - reuse.num_tokens
        yield Finished(decoding.reason, reuse, prefilled, prefill_s, decode_s, decoding.num_generated)

    def warm(
        self, tokens: Sequence[int], is_cancelled: Callable[[], bool], *, priority: int = SHARED_PRIORITY
    ) -> Iterator[Progress]:
        """Compute `tokens` ahead of use and store them; what a cancellation leaves is stored too."""
        assert 0 < len(tokens) < self.loaded.context, "the caller checks the context"
        yield from self._prefill(list(tokens), True, is_cancelled)
        self.store(priority=priority)

    def _prefill(
        self, prompt: list[int], reuse_allowed: bool, is_cancelled: Callable[[], bool]
    ) -> Generator[Progress, None, tuple[Reuse, torch.Tensor | None]]:
        """Bring the state to `prompt`; returns what was reused and the last token's logits, None when cancelled."""
        reuse = self._keep_what_is_shared(prompt, reuse_allowed)
        total = len(prompt) - reuse.num_tokens
        yield Progress(0, total, reuse)
        logits: torch.Tensor | None = None
        while len(self.state.tokens) < len(prompt):
            if is_cancelled():
                return reuse, None
            logits = self._prefill_chunk(prompt)
            yield Progress(len(self.state.tokens) - reuse.num_tokens, total, reuse)
        assert logits is not None, "at least one token is computed"
        return reuse, logits

    def _keep_what_is_shared(self, prompt: list[int], reuse_allowed: bool) -> Reuse:
        """Bring into the state what is known of the prompt but its last token: from itself, then from the cache."""
        if not reuse_allowed:
            return Reuse(live=self.state.keep(0))
        live = self.state.keep(min(common_prefix(self.state.tokens, prompt), len(prompt) - 1))
        if self.cache is None or not self.state.is_divisible:
            return Reuse(live)
        match = self.cache.match(prompt[:-1])
        gain = match.num_tokens - live
        if gain <= 0:
            reuse = Reuse(live, ended=match.ended)
        elif not self._is_worth_loading(match, live):
            reuse = Reuse(live, ended=match.ended, skipped=gain)
        else:
            reuse = self._load(prompt, match, live)
        self._count(prompt, reuse)
        return reuse

    def _is_worth_loading(self, match: Match, live: int) -> bool:
        assert self.cache is not None
        if not self.prefill_s_per_token:
            return True
        computing_s = (match.num_tokens - live) * self.prefill_s_per_token
        return self.cache.estimate_load_s(match, live) < computing_s

    def _load(self, prompt: list[int], match: Match, live: int) -> Reuse:
        assert self.cache is not None
        self.state.reserve(match.num_tokens)
        with self.cache.lease(match) as lease, torch.inference_mode():
            loaded = self.cache.load(lease, self.state.planes, live, match.num_tokens)
        self.state.advance(prompt[live : loaded.end])
        ended = match.ended if loaded.end >= match.num_tokens else Ended.CORRUPT
        return Reuse(live, loaded.ram, loaded.disk, loaded.seconds, ended)

    def _count(self, prompt: list[int], reuse: Reuse) -> None:
        assert self.cache is not None
        saved_s = reuse.num_tokens * self.prefill_s_per_token
        asked = CacheStats(
            asked_tokens=len(prompt),
            live_tokens=reuse.live,
            ram_tokens=reuse.ram,
            disk_tokens=reuse.disk,
            saved_s=saved_s,
        )
        self.cache.stats.add(asked)

    def _prefill_chunk(self, prompt: list[int]) -> torch.Tensor:
        chunk = self._next_chunk(prompt)
        started = time.perf_counter()
        logits = self.loaded.forward(chunk, self.state)
        if len(chunk) >= MEASURED_TOKENS:
            now = (time.perf_counter() - started) / len(chunk)
            self.prefill_s_per_token = (
                0.5 * (self.prefill_s_per_token + now) if self.prefill_s_per_token else now
            )
        return logits

    def _next_chunk(self, prompt: list[int]) -> list[int]:
        start = len(self.state.tokens)
        return prompt[start : start + self.chunk_tokens] if self.state.is_divisible else prompt[start:]
