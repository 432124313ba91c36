"""Token ids in, token ids out: keep what is cached, prefill the rest in chunks, decode. Knows no text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch

from kvchat.engine.sampling import Sampler, SamplingParams
from kvchat.models.kv_state import common_prefix
from kvchat.models.loader import LoadedModel

CHUNK_TOKENS = 256
"""Tokens of one prefill forward: what a cancellation waits for, and what it keeps."""


class Finish(StrEnum):
    """Why generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt. `stop_ids` end the answer and are not part of it; `max_tokens` bounds the answer."""

    prompt: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop_ids: frozenset[int] = frozenset()
    reuse: bool = True


@dataclass(frozen=True, slots=True)
class Reuse:
    """Where the prompt's state came from, in tokens; `kv_load_s` is what fetching it took."""

    live: int
    ram: int = 0
    disk: int = 0
    kv_load_s: float = 0.0

    @property
    def num_tokens(self) -> int:
        """All tokens that need no computing."""
        return self.live + self.ram + self.disk


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of the `total` tokens to compute are in; `reuse` says what was there before."""

    done: int
    total: int
    reuse: Reuse


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token id."""

    id: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event. Times in seconds; `prefilled` tokens were computed of the prompt."""

    reason: Finish
    reuse: Reuse
    prefilled: int
    prefill_s: float
    decode_s: float
    num_generated: int


EngineEvent = Progress | Token | Finished


class Engine:
    """One model and the live KV of one conversation at a time. Not thread-safe: one thread owns it."""

    def __init__(self, loaded: LoadedModel, *, chunk_tokens: int = CHUNK_TOKENS) -> None:
        self.loaded = loaded
        self.state = loaded.new_state()
        self.chunk_tokens = chunk_tokens

    def warm_up(self) -> None:
        """Run two small forwards, so that the first answer does not pay for what is set up lazily."""
        for tokens in ([0] * min(16, self.loaded.context - 2), [0]):
            self.loaded.forward(tokens, self.state)
        self.state.keep(0)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that one token takes in all layers; known after the first forward."""
        return sum(plane.shape[0] * plane.shape[2] * plane.element_size() for plane in self.state.planes)

    def close(self) -> None:
        """Nothing is used after this."""

    def generate(self, request: Request, is_cancelled: Callable[[], bool]) -> Iterator[EngineEvent]:
        """Answer `request.prompt`; the last event is `Finished`.

        Between two events the state holds the KV of exactly `state.tokens`, whatever happens: it may be closed or
        raise at any point. At least one token of the prompt is computed. `prompt` must be shorter than the context.
        """
        prompt = list(request.prompt)
        assert 0 < len(prompt) < self.loaded.context, "the caller checks the context"
        reuse = self._keep_what_is_shared(prompt, request)
        total = len(prompt) - reuse.num_tokens
        started = time.perf_counter()
        yield Progress(0, total, reuse)
        logits: torch.Tensor | None = None
        while len(self.state.tokens) < len(prompt):
            if is_cancelled():
                done = len(self.state.tokens) - reuse.num_tokens
                yield Finished(Finish.CANCELLED, reuse, done, time.perf_counter() - started, 0.0, 0)
                return
            logits = self.loaded.forward(self._next_chunk(prompt), self.state)
            yield Progress(len(self.state.tokens) - reuse.num_tokens, total, reuse)
        assert logits is not None, "at least one token is computed"
        prefill_s = time.perf_counter() - started
        yield from self._decode(request, logits, is_cancelled, reuse=reuse, prefill_s=prefill_s)

    def _keep_what_is_shared(self, prompt: list[int], request: Request) -> Reuse:
        shared = common_prefix(self.state.tokens, prompt) if request.reuse else 0
        return Reuse(live=self.state.keep(min(shared, len(prompt) - 1)))

    def _next_chunk(self, prompt: list[int]) -> list[int]:
        start = len(self.state.tokens)
        return prompt[start : start + self.chunk_tokens] if self.state.is_divisible else prompt[start:]

    def _decode(
        self,
        request: Request,
        logits: torch.Tensor,
        is_cancelled: Callable[[], bool],
        *,
        reuse: Reuse,
        prefill_s: float,
    ) -> Iterator[EngineEvent]:
        started = time.perf_counter()
        prompt_tokens = len(request.prompt)
        room = self.loaded.context - prompt_tokens
        limit = room if request.max_tokens is None else min(room, request.max_tokens)
        sampler = Sampler(request.sampling, request.prompt, logits.device)
        count = 0
        reason = Finish.LENGTH
        while count < limit:
            if is_cancelled():
                reason = Finish.CANCELLED
                break
            token = sampler.choose(logits)
            if token in request.stop_ids:
                reason = Finish.STOP
                break
            count += 1
            yield Token(token)
            if count < room:  # also behind the last one: the next turn finds the whole answer held
                logits = self.loaded.forward([token], self.state)
        decode_s = time.perf_counter() - started
        prefilled = prompt_tokens - reuse.num_tokens
        yield Finished(reason, reuse, prefilled, prefill_s, decode_s, count)
