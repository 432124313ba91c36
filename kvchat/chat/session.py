"""One conversation in memory: a tree of exchanges and a tip. Knows no torch, no terminal and no storage.

An exchange is one user message and its answer. Each one names its parent, so moving the tip (undo, retry,
fork) destroys nothing, and a store can keep the same rows below this class.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import cast

from kvchat.backends.base import Answer, Backend, Done, Event, FinishReason, Options, Role, Text, Turn
from kvchat.config import Config
from kvchat.errors import KvchatError


def is_empty(answer: Answer) -> bool:
    """Whether an answer was cancelled before anything was generated; its message is then taken back."""
    said = answer.completion or answer.text or answer.reasoning
    return answer.finish_reason is FinishReason.CANCELLED and not said


def new_id() -> str:
    """A short random name, eight hex digits."""
    return secrets.token_hex(4)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A node of the tree: what the user said and what came back; `answer` is None while it is being made."""

    id: str
    parent: str | None
    user: Turn
    answer: Answer | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The messages of this exchange, as a backend takes them."""
        return (self.user,) if self.answer is None else (self.user, self.answer.turn())


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all answers of a session, in tokens; `cached_tokens + prefilled_tokens` were asked for."""

    answers: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    completion_tokens: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the prompts' tokens that was not computed again, 0 to 1."""
        asked = self.cached_tokens + self.prefilled_tokens
        return self.cached_tokens / asked if asked else 0.0

    def plus(self, answer: Answer) -> Totals:
        """The totals with one more answer."""
        usage = answer.usage
        return Totals(
            self.answers + 1,
            self.cached_tokens + usage.cached_tokens,
            self.prefilled_tokens + usage.prompt_tokens - usage.cached_tokens,
            self.completion_tokens + usage.completion_tokens,
        )


class Session:
    """A conversation with a backend. `options` may be replaced between two messages.

    What stays of a message: an answer that ended, was cut by its length or was cancelled after its first token
    is kept with its message. After an error, or a cancel before the first token, the message is taken back, so
    that the conversation is what it was before and the same text can be sent again.
    """

    def __init__(self, backend: Backend, options: Options | None = None, system: str | None = None) -> None:
        self.id = new_id()
        self.backend = backend
        self.options = options or Options()
        self.totals = Totals()
        self._system = system or None
        self._exchanges: dict[str, Exchange] = {}
        self._tip: str | None = None

    @classmethod
    def from_config(cls, backend: Backend, config: Config) -> Session:
        """A session with the sampling options and the system prompt of the settings."""
        return cls(backend, Options(**asdict(config.sampling)), config.chat.system)

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self._system

    @property
    def path(self) -> tuple[Exchange, ...]:
        """The exchanges from the root to the tip."""
        path: list[Exchange] = []
        step = self._tip
        while step is not None:
            path.append(self._exchanges[step])
            step = path[-1].parent
        return tuple(reversed(path))

    @property
    def history(self) -> tuple[Turn, ...]:
        """All messages up to the tip, the system prompt first."""
        head = () if self._system is None else (Turn(Role.SYSTEM, self._system),)
        return head + tuple(turn for exchange in self.path for turn in exchange.turns)

    @property
    def last(self) -> Answer | None:
        """The answer at the tip."""
        tip = self.tip
        return tip.answer if tip else None

    @property
    def tip(self) -> Exchange | None:
        """The exchange that the next message follows."""
        return None if self._tip is None else self._exchanges[self._tip]

    def set_system(self, text: str | None) -> None:
        """Replace the system prompt from the next message on; what was said stays."""
        self._system = text or None

    def clear(self) -> None:
        """Move the tip before the first message; the tree and the system prompt stay."""
        self._tip = None

    def send(self, text: str) -> Generator[Event, None, None]:
        """Say something and yield the backend's events; the last is `Done`.

        Closing the iterator early cancels the answer and keeps what was generated. Raises KvchatError, as
        `Backend.answer` does; the message is then taken back.
        """
        exchange = Exchange(new_id(), self._tip, Turn(Role.USER, text))
        self._exchanges[exchange.id], self._tip = exchange, exchange.id
        events = self.backend.answer(self.history, self.options)
        try:
            for event in events:
                if isinstance(event, Done):
                    self._keep(exchange, event.answer)
                yield event
        except GeneratorExit:
            self._finish_cancelled(exchange, events)
            raise
        finally:
            if self._exchanges[exchange.id].answer is None:
                self._take_back(exchange)

    def stream(self, text: str) -> Iterator[str]:
        """Say something and yield the answer's text as it comes, without its reasoning."""
        with closing(self.send(text)) as events:
            for event in events:
                if isinstance(event, Text) and not event.reasoning:
                    yield event.text

    def ask(self, text: str) -> str:
        """Say something and return the whole answer, without its reasoning."""
        return "".join(self.stream(text))

    def close(self) -> None:
        """End the backend; needed once for all sessions that share it."""
        self.backend.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, exchange: Exchange, answer: Answer) -> None:
        if is_empty(answer):
            return
        self._exchanges[exchange.id] = replace(exchange, answer=answer)
        self.totals = self.totals.plus(answer)

    def _finish_cancelled(self, exchange: Exchange, events: Iterator[Event]) -> None:
        """Drain an abandoned answer to its end, for the exact ids of what was generated."""
        if self._exchanges[exchange.id].answer is not None:
            return
        self.backend.cancel()
        try:
            for event in events:
                if isinstance(event, Done):
                    self._keep(exchange, event.answer)
        except KvchatError:
            cast(Generator[Event, None, None], events).close()

    def _take_back(self, exchange: Exchange) -> None:
        del self._exchanges[exchange.id]
        self._tip = exchange.parent
