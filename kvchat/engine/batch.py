"""What several answers want computed at once: the next tokens of each, in as few forwards as hold them. Knows no job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from kvchat.models.company import Part
from kvchat.models.kv_state import KVState
from kvchat.models.loaded import LoadedModel

SLICE_S = 0.1
"""About how long an answer may wait for its next token while somebody else's prompt is computed."""


def _nobody() -> None:
    """Nobody else is there."""


@dataclass(slots=True, eq=False)
class Wish:
    """Generated tokens that one answer wants computed behind its state. `logits` [tokens, vocab] is what came of it; None
    where it was not computed with others: then its owner does it alone."""

    part: Part
    is_cancelled: Callable[[], bool]
    logits: torch.Tensor | None = None


class Batch:
    """The wishes of the answers that are being made. One thread owns it.

    While it `is_open` there are several such answers: each wishes for its next tokens, and lets the others go on until
    these are computed. A long forward over somebody's prompt is cut into slices of `slice_s` by the clock, at its layers:
    between two of them the others go on. So a prompt is computed in forwards as large as pay, however deep it is and
    however busy the machine; and each of its bits is what it is without them.
    """

    def __init__(self, loaded: LoadedModel, *, slice_s: float = SLICE_S) -> None:
        self.let_others_on: Callable[[], None] = _nobody
        """Computes what is wished for, and lets those go on who wished for it; whoever runs the answers sets it."""
        self._loaded = loaded
        self._num_answers = 1
        self._wishes: dict[Wish, None] = {}
        self._slice_s = slice_s
        self._slice_began = self._layer_began = 0.0
        self._others_s = 0.0

    @property
    def most(self) -> int:
        """How many answers can be made at once; 1 where each is computed alone."""
        return max(1, self._loaded.num_together)

    @property
    def is_open(self) -> bool:
        """Whether answers are computed together."""
        return self._num_answers > 1

    def admit(self, num_answers: int) -> None:
        """So many answers are being made from now on, no more than `most`."""
        assert num_answers <= self.most, f"{num_answers} answers"
        self._num_answers = num_answers

    @property
    def share(self) -> int:
        """How many tokens an answer may wish for at once so that all fit into one forward."""
        return max(1, self._loaded.num_together // self._num_answers)

    def wish(self, tokens: Sequence[int], state: KVState, is_cancelled: Callable[[], bool]) -> Wish:
        """Want `tokens` computed behind what `state` holds, by the next `compute`."""
        wish = Wish(Part(tokens, state), is_cancelled)
        self._wishes[wish] = None
        return wish

    def withdraw(self, wish: Wish) -> None:
        """It is wanted no more, or was granted."""
        self._wishes.pop(wish, None)

    def compute(self) -> None:
        """Compute what is wanted, as far as several want something; what fails is left to each answer alone."""
        wishes, self._wishes = list(self._wishes), {}
        for some in self._fitting(wishes):
            if len(some) > 1:
                self._grant(some)
        self._slice_began = self._layer_began = time.perf_counter()

    def clock(self) -> float:
        """Seconds from any moment on; it stands while others go on in the midst of somebody's forward."""
        return time.perf_counter() - self._others_s

    def between_layers(self) -> None:
        """A layer of somebody's prompt is to begin: let the others go on first if they would wait for too long, should it
        take as long as the one before."""
        now = time.perf_counter()
        last_s, self._layer_began = now - self._layer_began, now
        if self._wishes and now + last_s - self._slice_began > self._slice_s:
            self.let_others_on()
            self._others_s += time.perf_counter() - now
            self._slice_began = self._layer_began = time.perf_counter()

    def _fitting(self, wishes: Sequence[Wish]) -> Iterator[list[Wish]]:
        """The wishes in groups that one forward takes."""
        group: list[Wish] = []
        room = self._loaded.num_together
        for wish in wishes:
            if group and len(wish.part.tokens) > room:
                yield group
                group, room = [], self._loaded.num_together
            group.append(wish)
            room -= len(wish.part.tokens)
        if group:
            yield group

    def _grant(self, wishes: Sequence[Wish]) -> None:
        def are_cancelled() -> bool:
            return all(wish.is_cancelled() for wish in wishes)

        try:
            with self._loaded.network.pauses.asking(are_cancelled):
                found = self._loaded.logits_together([wish.part for wish in wishes])
        except Exception:  # each tries alone, and says what is wrong with it
            return
        for wish, logits in zip(wishes, found, strict=True):
            wish.logits = logits
