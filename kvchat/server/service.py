"""What all endpoints share: one backend with its seats, and what is remembered of its answers. Knows no protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePath

from kvchat.backends.base import Answer, FinishReason, ModelInfo, Options, Phase, Turn
from kvchat.errors import EngineDiedError, KvchatError
from kvchat.server.memory import Beginnings, Memory
from kvchat.server.metrics import Metrics
from kvchat.server.question import Question, remember
from kvchat.server.refusals import RefusedError, refusal_of
from kvchat.server.running import Engine, Running
from kvchat.server.seats import Answerer, Seats
from kvchat.server.turnstile import MAX_WAITING, Turnstile

MAX_BODY_BYTES = 16 * 2**20
BODY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take: bytes of its body, seconds until all of that has come, and places in the queue."""

    body_bytes: int = MAX_BODY_BYTES
    body_s: float = BODY_TIMEOUT_S
    num_waiting: int = MAX_WAITING


def served_name(info: ModelInfo) -> str:
    """What the model is called; of one in a folder or a file no more than the last part of its path."""
    return PurePath(info.name).name if info.name.startswith(("/", ".", "~")) else info.name


class Service:
    """One server's state. `defaults` is how it answers where a request doesn't say. All in one event loop.

    Answers are made at the backend's `seats`, as many at once as the model allows; by default it is one alone.
    """

    def __init__(
        self, backend: Engine, defaults: Options, limits: Limits, seats: Sequence[Answerer] = ()
    ) -> None:
        self.backend = backend
        self.defaults = defaults
        self.limits = limits
        self.memory = Memory()
        self.beginnings = Beginnings()
        self.metrics = Metrics()
        self.turnstile = Turnstile(max_waiting=limits.num_waiting)
        self._seats = Seats(seats or (backend,))
        self._info: ModelInfo | None = None
        self._looking: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded, or has nothing more to do than to answer."""
        return self.backend.status().phase in (Phase.READY, Phase.PREFILLING, Phase.DECODING)

    async def info(self) -> ModelInfo:
        """The loaded model; waits for it. Raises KvchatError."""
        if self._info is None:
            self._info = await asyncio.to_thread(self.backend.info)
            self.turnstile.widen(min(self._seats.num_seats, self._info.num_at_once))
        return self._info

    def refusal(self, error: BaseException) -> RefusedError:
        """What a client is told of an error: of the model no more than its name."""
        refused = refusal_of(error)
        if self._info is not None:
            refused.message = refused.message.replace(self._info.name, served_name(self._info))
        return refused

    async def prompt(self, turns: tuple[Turn, ...], options: Options) -> tuple[int, ...]:
        """The ids that turns are."""
        return await asyncio.to_thread(self.backend.prompt, turns, options)

    @asynccontextmanager
    async def answering(self, question: Question) -> AsyncIterator[Running]:
        """An answer being made, once it is this client's turn; leaving it cancels what is not made yet.

        Raises RefusedError where too many wait.
        """
        await self.turnstile.enter(question.client)
        seat = self._seats.take(question.turns)

        def free() -> None:
            self._seats.give_back(seat, question.turns)
            self.turnstile.leave()

        try:
            running = Running(
                seat,
                question.turns,
                question.options,
                on_answer=lambda answer: self._note(question, answer),
                on_end=lambda: self._ended(free),
            )
        except BaseException:
            free()
            raise
        try:
            yield running
        finally:
            running.cancel()

    def _note(self, question: Question, answer: Answer) -> None:
        self.metrics.count_answer(answer)
        remember(question, answer, self.memory, self.beginnings)

    def _ended(self, free: Callable[[], None]) -> None:
        free()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        """See what the cache holds now, for the metrics."""
        with suppress(KvchatError):
            self.metrics.view = await asyncio.to_thread(self.backend.cache, (), has_rows=False)


def check_whole(answer: Answer) -> None:
    """Raise EngineDiedError for an answer that ended because its engine did: nobody cancelled it who still waits."""
    if answer.finish_reason is FinishReason.CANCELLED:
        raise EngineDiedError("the engine ended", "ask again")
