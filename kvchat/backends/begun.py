"""An answer that is begun before its message is sent, and held back until it is. Knows not what is typed.

It is the answer itself, made by the same steps from the same request, which waits between two of them: whatever it
depends on (draws, penalties, stop strings, reasoning, guesses) is as if it had begun when its message was sent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing

from kvchat.backends.answering import Answering
from kvchat.backends.asking import Question
from kvchat.backends.base import Event, Keeping, Status
from kvchat.backends.loading import Show, Talk
from kvchat.engine.request import Wanting, never

BEGUN_TOKENS = 8
"""So many tokens of an answer are made before its message is sent, at most: the next ones are made while they are read,
and nothing runs any more when it is sent."""


def _unseen(status: Status) -> None:
    """Nobody looks."""


class Begun:
    """An answer that is made before its message is sent. What it tells is held back until it is handed out.

    Once it `is_useless`, because another message is meant by now, the forward that runs is broken off.
    """

    def __init__(
        self, talk: Talk, question: Question, keeping: Keeping, is_useless: Callable[[], bool]
    ) -> None:
        self.question = question
        self.keeping = keeping
        self.is_useless = is_useless
        self.seconds = 0.0
        self._talk = talk
        self._last = talk.last
        self._is_cancelled = is_useless
        self._is_paused: Callable[[], bool] = never
        self._show: Show = _unseen
        self._told: deque[Event] = deque()
        self._answering = Answering(talk, question, started=0.0)
        self._steps = self._answering.steps(
            keeping,
            lambda: self._is_cancelled(),
            lambda status: self._show(status),
            lambda: self._is_paused(),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer that are there."""
        return self._answering.num_tokens

    def has(self, num_tokens: int) -> bool:
        """Whether so many tokens of it are there, or all."""
        return self._answering.is_finished or self.num_tokens >= num_tokens

    def step(self, is_paused: Callable[[], bool] = never) -> float:
        """Make one token more, or what comes before the first; the seconds it took. Raises as an answer does.

        Once it `is_paused`, a token is left to the next step: what is there may be handed out without waiting for it."""
        started = time.perf_counter()
        self._is_paused = is_paused
        self._told.extend(event for event in next(self._steps) if not isinstance(event, Wanting))
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return seconds

    def drop(self) -> None:
        """Forget it: all is as before it was begun."""
        self._steps.close()
        self._talk.last = self._last
        if self._talk.sequence.speculation is not None:
            self._talk.sequence.speculation.begin([], [])

    def is_for(self, question: Question, keeping: Keeping) -> bool:
        """Whether it answers this very question, in the same way."""
        mine = self.question
        return (
            not self.is_useless()
            and mine.tokens == question.tokens
            and mine.options == question.options
            and mine.unfinished == question.unfinished
            and self.keeping == keeping
        )

    def hand_out(
        self, is_cancelled: Callable[[], bool], show: Show, started: float
    ) -> Generator[Event | Wanting, None, None]:
        """The answer's events as if it began at `started`, when its message was sent: at once what is there, then the
        rest."""
        self._is_cancelled, self._is_paused, self._show = is_cancelled, never, show
        self._answering.restart(started)
        with closing(self._steps):
            yield from self._told
            for events in self._steps:
                yield from events
