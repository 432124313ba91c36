"""The decode loop: from the prompt's last logits to the last token of the answer. Knows no text and no cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

import torch

from kvchat.engine.batch import Batch
from kvchat.engine.forwards import Forwards
from kvchat.engine.request import WANTING, Finish, Request, Token, Wanting
from kvchat.engine.sampling import Sampler
from kvchat.engine.scoring import score_of
from kvchat.engine.sequence import LiveSequence
from kvchat.models.kinds import as_generated
from kvchat.models.pauses import Interrupted


class Decoding:
    """One answer being decoded behind the prompt that `sequence` holds; how it went is in its attributes.

    With speculation, guessed tokens are computed along with the last one. Each position's token is still chosen
    from its own logits by the same draws in the same order, and the guesses count as far as they equal what was
    chosen: the answer is the one without guesses.

    While others answer too, forwards are left to `batch`: this one is `WANTING` until what it wishes for is computed, or
    its turn has come to compute it alone. The bits are the same. Where others are to go first, a forward of its own ends
    between two layers, and is computed again when this one is gone on with.
    """

    def __init__(
        self,
        forwards: Forwards,
        batch: Batch,
        sequence: LiveSequence,
        request: Request,
        is_paused: Callable[[], bool],
    ) -> None:
        """`is_paused` says that others are to go first."""
        self.reason = Finish.LENGTH
        self.num_generated = 0
        self.was_alone = True
        """Whether no others answered or went first meanwhile: only then its time says what a forward takes."""
        self.paused_s = 0.0
        """How long it let others go first."""
        self._is_paused = is_paused
        self._forwards = forwards
        self._batch = batch
        self._state = sequence.state
        self._request = request
        self._speculation = sequence.speculation if self._state.is_divisible else None
        self._room = forwards.loaded.context - len(request.prompt)
        wanted = request.max_tokens
        self._limit = self._room if wanted is None else min(self._room, wanted)
        self._sampler = Sampler(request.sampling, request.prompt, forwards.loaded.device)
        self._is_followed = False
        self._is_timed = True

    def tokens(
        self, logits: torch.Tensor, is_cancelled: Callable[[], bool], is_over: Callable[[], bool]
    ) -> Generator[Token | Wanting, None, None]:
        """The answer's tokens from the prompt's last logits, [vocab] in float32.

        Each is computed when the next is asked for, the last one too: the next turn finds the whole answer held.
        Behind each it is asked whether the answer `is_over`. The state is cut to what was said when the iterator ends
        or is closed.
        """
        chosen = [self._choose(logits)]
        try:
            while self.num_generated < self._limit:
                for token in chosen:
                    if is_cancelled():
                        self.reason = Finish.CANCELLED
                        return
                    if token.id in self._request.stop_ids:
                        self.reason = Finish.STOP
                        return
                    self.num_generated += 1
                    yield token
                    if is_over():
                        self.reason = Finish.STOP
                        return
                if self.num_generated < self._limit:
                    chosen = yield from self._next(chosen, is_cancelled)
                elif self._limit < self._room:
                    yield from self._rows(self._told([chosen[-1].id]), is_cancelled)
        except Interrupted:
            self.reason = Finish.CANCELLED if self.num_generated < self._limit else self.reason
        finally:
            self._cut(len(self._request.prompt) + self.num_generated)

    def _next(
        self, last: Sequence[Token], is_cancelled: Callable[[], bool]
    ) -> Generator[Wanting, None, list[Token]]:
        """What follows the tokens of the `last` step: one token, and behind it as many as were guessed right."""
        said = [token.id for token in last]
        guesses = self._guesses(said)
        held = len(self._state.tokens)
        is_alone, self._is_timed = not self._batch.is_open, True
        started = time.perf_counter()
        rows = yield from self._rows(self._told([said[-1], *guesses]), is_cancelled)
        chosen = [self._choose(rows[0])]
        seconds = time.perf_counter() - started  # a GPU has done its work once a token is chosen
        for row, guess in zip(rows[1:], guesses, strict=True):
            if chosen[-1].id != guess:
                break
            chosen.append(self._choose(row))
        self._cut(held + len(chosen))
        if self._speculation is not None:
            ids = [token.id for token in chosen]
            self._speculation.learn(guesses, ids, seconds if is_alone and self._is_timed else None)
        return chosen

    def _choose(self, logits: torch.Tensor) -> Token:
        token, num_top = self._sampler.choose(logits), self._request.top_logprobs
        return Token(token, None if num_top is None else score_of(logits, token, num_top))

    def _rows(
        self, tokens: Sequence[int], is_cancelled: Callable[[], bool]
    ) -> Generator[Wanting, None, torch.Tensor]:
        """The logits of all `tokens`, which are held behind it, [tokens, vocab]."""
        if self._batch.is_open:
            self.was_alone = False
            wish = self._batch.wish(tokens, self._state, is_cancelled)
            try:
                yield WANTING
            finally:
                self._batch.withdraw(wish)
            if wish.logits is not None:
                return wish.logits
        while True:
            try:
                return self._forwards.logits(
                    tokens, self._state, len(tokens), lambda: is_cancelled() or self._is_paused()
                )
            except Interrupted:
                if is_cancelled():
                    raise
            self.was_alone = self._is_timed = False
            since = time.perf_counter()
            yield WANTING
            self.paused_s += time.perf_counter() - since

    def _guesses(self, said: Sequence[int]) -> list[int]:
        if self._speculation is None:
            return []
        if self._is_followed:
            self._speculation.extend(said)
        else:  # after the first token, which does not wait for this
            self._speculation.begin(self._request.prompt, said)
            self._is_followed = True
        at_once = self._forwards.loaded.num_at_once(self._state)
        if self._batch.is_open:
            at_once = min(at_once, self._batch.share)
        room = min(self._limit - self.num_generated, at_once) - 1
        return self._speculation.guesses(max(0, room), self._request.stop_ids)

    def _told(self, ids: Sequence[int]) -> Sequence[int]:
        """What is said here, as tokens of its kind where that makes a difference."""
        return as_generated(ids) if self._forwards.loaded.is_exact else ids

    def _cut(self, num_tokens: int) -> None:
        if len(self._state.tokens) > num_tokens:
            self._state.keep(num_tokens)
