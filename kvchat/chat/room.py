"""A conversation that makes room for itself before its context is full: in idle time, or when a message needs it.

Knows no terminal and no clock: what is idle time, its caller says.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kvchat.backends.base import (
    NEVER_BEGUN,
    Answer,
    Done,
    Event,
    Notice,
    Prefilling,
    Text,
    Turn,
)
from kvchat.chat.answering import Events
from kvchat.chat.measuring import LEAST_ANSWER, Measuring, num_bytes
from kvchat.chat.noting import listed_text
from kvchat.chat.shortening import StoppedError, flaw
from kvchat.chat.telling import first_word_for_word
from kvchat.chat.tree import Exchange
from kvchat.errors import ContextOverflowError

DUE = 0.75
"""The share of the context from which on room is made in idle time."""
_POLL_S = 0.02


class WhenFull(StrEnum):
    """What to do when the context gets full: summarise the oldest messages, let the user choose, leave the oldest out, or
    nothing."""

    AUTO = "auto"
    ASK = "ask"
    DROP = "drop"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Shorter:
    """A summary that can be put in force. Unless it `is_told`, what it stands for is left out; then `flaw` is what was wrong
    with the one that the model made."""

    summary: Exchange
    is_told: bool = False
    flaw: str = ""


class MakingRoom(Measuring):
    """A conversation that goes on past its context, if `when_full` says how.

    An epoch is the time between two summaries: what the model is told grows at its end alone, and changes once before
    the next one begins. What was made in idle time is put in force by the message that comes next.
    """

    when_full = WhenFull.OFF
    has_chosen = False
    """Whether the user said so in the dialogue."""
    prepares = True
    """Whether a summary may be made while nobody waits."""
    is_shortening = False
    """Whether one is being made so now."""

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        self._idle = threading.Lock()  # held by whoever works ahead
        self._is_asked = False  # somebody waits; what is done ahead gives way
        self._ready: Shorter | None = None  # with its KV
        self._draft: Shorter | None = None  # without
        self._given_up_at: object = None
        self._expanded: object = None
        self._counted: object = None  # what was told with the last answer, which says its length

    def compact(self, keep: int = 2) -> Events:
        """See `Shortening.compact`."""
        return self._alone(super().compact(keep))

    def expand(self) -> Exchange | None:
        """See `Shortening.expand`; no other summary takes its place before there is need."""
        before = super().expand()
        self._expanded = self.id, self._summary
        return before

    @property
    def _makes_room(self) -> bool:
        return self.when_full in (WhenFull.AUTO, WhenFull.DROP)

    # Making room for a message

    def _answered(self, exchange: Exchange, temperature: float | None = None) -> Events:
        if self._makes_room:
            return self._alone(self._answered_in_room(exchange, temperature))
        return self._alone(super()._answered(exchange, temperature))

    def _answered_in_room(self, exchange: Exchange, temperature: float | None) -> Events:
        try:
            yield from self._room_for(exchange)
            try:
                yield from super()._answered(exchange, temperature)
            except ContextOverflowError as error:
                if not (yield from self._make_room(exchange)):
                    raise _told_of_pins(error, self.pinned) from error
                yield from super()._answered(exchange, temperature)
            self._counted = self._telling(self._tip)
        except StoppedError:
            yield Done(Answer.cut_short(NEVER_BEGUN))

    def _room_for(self, exchange: Exchange) -> Events:
        """Put in force what was made in idle time; make room now where a message and its answer have none."""
        path, ready = self._tree.path(exchange.parent), self._ready
        self._ready = None
        if not path:
            return
        if ready is not None and self._is_valid(ready, path):
            yield self._begin_epoch(ready, path)
        context = self.backend.info().context
        if context and self._is_over(path, exchange.turns, int(context * (1 - LEAST_ANSWER))):
            yield from self._make_room(exchange)

    def _make_room(self, exchange: Exchange) -> Generator[Event, None, bool]:
        """Make room while somebody waits; whether there is more of it now."""
        path = self._tree.path(exchange.parent)
        shorter = self._draft if self._draft and self._is_valid(self._draft, path) else None
        self._draft = None
        if shorter is None:
            shorter = yield from self._shortened(path, exchange)
        if shorter is None:
            return False
        yield self._begin_epoch(shorter, path)
        return True

    def _begin_epoch(self, shorter: Shorter, path: Sequence[Exchange]) -> Notice:
        """Put it in force, and say in a line what is kept."""
        self._put_in_force(shorter.summary)
        start = first_word_for_word(path, shorter.summary)
        num_pinned = sum(exchange.is_pinned for exchange in path[:start])
        recent = len(path) - start
        kept = [f"the last {recent}" if recent else "", f"{num_pinned} pinned" if num_pinned else ""]
        kept = [*filter(None, [*kept, listed_text(shorter.summary.user.text)])]
        verb = "told as a summary" if shorter.is_told else "left out"
        why = f"the summary {shorter.flaw}, so " if shorter.flaw else ""
        stay = f"; {' and '.join(kept)} stay word for word" if kept else ""
        count = _counted(start - num_pinned)
        return Notice(f"{why}{count} {verb} from here on{stay} (/expand undoes it)", is_warning=False)

    # Making room ahead

    def _room_ahead(self) -> Events:
        """Make a summary and compute what the next prompt begins with behind it, if it is time; for idle time."""
        with self._idle:
            place = self.place
            if self._is_asked or not self._may_work_ahead(place):
                return
            path = self.path
            draft = self._draft if self._draft and self._is_valid(self._draft, path) else None
            if draft is None:
                self._given_up_at = place  # unless something comes of it
                draft = yield from self._shown(self._shortened(path, None))
            if draft is None:
                return
            self._draft, self._given_up_at = draft, None
            yield from self.backend.prepare(self._history(path, draft.summary), self.chosen)
            if not self._is_asked and self.place == place:
                self._ready, self._draft = draft, None

    def _may_work_ahead(self, place: object) -> bool:
        """Whether room is to be made now, before anybody asks for it."""
        path = self.path
        if not path or path[-1].answer is None or not self.prepares:
            return False
        if not self._makes_room or self._expanded == (self.id, self._summary):
            return False
        if self._ready is not None and self._is_valid(self._ready, path):
            return False
        context = self.backend.info().context
        return bool(context) and self._given_up_at != place and self._is_over(path, (), int(DUE * context))

    def _next_history(self, path: Sequence[Exchange]) -> tuple[Turn, ...]:
        """What the model is told of a path when the next message is sent."""
        if self._ready is not None and self._is_valid(self._ready, path):
            return self._history(path, self._ready.summary)
        return self.history_of(path)

    @property
    def place(self) -> tuple[object, ...]:
        """What the next prompt begins with depends on this; another place where it is not equal."""
        ready = self._ready.summary.id if self._ready else None
        told_as = self._summary, ready, self._num_pinnings, self.when_full
        return self.backend, self._tip, self.last, self._system, self._is_pinned, self.chosen.think, *told_as

    # How it is done

    def _shortened(
        self, path: Sequence[Exchange], exchange: Exchange | None
    ) -> Generator[Event, None, Shorter | None]:
        """A summary of the oldest messages, with room behind it for what is said now; None where that can't be had."""
        asked = exchange.turns if exchange else ()
        is_told = self.when_full is WhenFull.AUTO
        num_recent = self._num_recent(path, asked, is_told=is_told)
        start = first_word_for_word(path, self._in_force(path))
        if num_recent is None or num_recent >= len(path) - start:
            return None
        older = path[: len(path) - num_recent]
        if not is_told:
            return Shorter(self._left_out(older))
        if exchange is not None:
            yield Notice(f"the context is full, so {_counted(len(older))} summarised first", is_warning=False)
        try:
            summary = yield from self._quietly(self._summarised(older))
        except ContextOverflowError:
            return Shorter(self._only_noted(older), flaw="had no room")
        assert summary.answer is not None
        if summary.answer.finish_reason.is_cut:
            raise StoppedError
        if what := flaw(summary.answer):
            return Shorter(self._only_noted(older), flaw=what)
        return Shorter(summary, is_told=True)

    def _quietly(self, events: Generator[Event, None, Exchange]) -> Generator[Event, None, Exchange]:
        """The events of a summary's making as progress: nobody asked for its text."""
        limit, done = self._summary_tokens(), 0
        with closing(events):
            while True:
                try:
                    event = next(events)
                except StopIteration as end:
                    summary: Exchange = end.value
                    return summary
                if isinstance(event, Text):
                    done = min(done + 1, limit)
                    event = Prefilling(done, limit, 0)
                if not isinstance(event, Done):
                    yield event

    def _is_over(self, path: Sequence[Exchange], asked: Sequence[Turn], limit: int) -> bool:
        """Whether a path and what is asked behind it have more tokens; counted only where the last answer does not tell."""
        answer = path[-1].answer
        if answer is not None and self._counted == self._telling(path[-1].id):
            known = answer.usage.total_tokens
            if not asked or known + num_bytes(asked) <= limit:
                return known > limit
        return self.is_longer((*self.history_of(path), *asked), limit)

    def _telling(self, tip: str | None) -> object:
        """What the length of a prompt up to a tip depends on."""
        return tip, self._summary, self._num_pinnings, self._system, self.model

    def _shown(
        self, events: Generator[Event, None, Shorter | None]
    ) -> Generator[Event, None, Shorter | None]:
        self.is_shortening = True
        try:
            return (yield from events)
        finally:
            self.is_shortening = False

    def _is_valid(self, shorter: Shorter, path: Sequence[Exchange]) -> bool:
        """Whether a summary that was made follows the one in force, and stands for a part of this path."""
        summary, before = shorter.summary, self._in_force(path)
        is_next = summary.follows == (before.id if before else "")
        return self._makes_room and is_next and any(exchange.id == summary.parent for exchange in path)

    def _alone(self, events: Events) -> Events:
        """Events of what somebody waits for; what is done ahead ends first."""
        with closing(events), self._asking():
            yield from events

    @contextmanager
    def _asking(self) -> Iterator[None]:
        self._is_asked = True
        try:
            while not self._idle.acquire(timeout=_POLL_S):
                self.backend.cancel()
            self._idle.release()
            yield
        finally:
            self._is_asked = False


def _told_of_pins(error: ContextOverflowError, pinned: Sequence[int]) -> ContextOverflowError:
    if not pinned:
        return error
    return ContextOverflowError(error.message, "unpin messages with /unpin, or shorten the message")


def _counted(count: int) -> str:
    return "1 older message is" if count == 1 else f"{count} older messages are"
