"""A conversation on its way through a template: its texts, and placeholders where ids are known. Knows no tokenizer.

What comes back is cut at the placeholders, and looked through: every message has to stand in it, once and in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

_OPEN, _CLOSE = "\uf8fc", "\uf8fd"  # private use: brackets of a placeholder
_PLACEHOLDER = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_BRACKETS = re.compile(f"[{_OPEN}{_CLOSE}]")


@dataclass(frozen=True, slots=True)
class Message:
    """One message: `tokens` are an answer's exact ids (marks and reasoning included) if this tokenizer made them.

    `extra` are further keys that a template may know of it, as JSON.
    """

    role: str
    text: str
    reasoning: str = ""
    tokens: Sequence[int] | None = None
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """What must be found of a message in its prompt: a placeholder's number or a text; at its place if `is_ordered`."""

    sign: int | str
    is_ordered: bool = True


@dataclass(frozen=True, slots=True)
class Thought:
    """A past answer with reasoning: the placeholders of the two, and all its ids.

    `is_opened` says that the ids begin with the mark that opens reasoning; else the prompt before them ended with it.
    """

    message: int
    thought: int
    shown: int
    ids: tuple[int, ...]
    is_opened: bool


@dataclass(slots=True)
class TemplateInput:
    """Messages as a template takes them; their placeholders are numbered by `known`, from `first` on, and `traces` has
    one for each message."""

    options: dict[str, bool]
    known: list[tuple[int, ...]] = field(default_factory=list)
    answers: set[int] = field(default_factory=set)
    """The placeholders that stand for a whole answer."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    thoughts: list[Thought] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """How many placeholders there are up to each message's last."""
    first: int = 0

    def beginning(self, num_messages: int, options: dict[str, bool]) -> TemplateInput:
        """The same of the first messages alone."""
        sizes = self.sizes[:num_messages]
        known = self.known[: sizes[-1] if sizes else 0]
        thoughts = [thought for thought in self.thoughts if thought.message < num_messages]
        answers = {number for number in self.answers if number < len(known)}
        traces, messages = self.traces[:num_messages], self.messages[:num_messages]
        return TemplateInput(options, known, answers, messages, thoughts, traces, sizes)

    def hide(self, tokens: Sequence[int]) -> int:
        """The number of a new placeholder that stands for `tokens`, given or generated."""
        self.known.append(tuple(tokens))
        return self.first + len(self.known) - 1


def placeholder(number: int) -> str:
    """The text that stands for `known[number]`."""
    return f"{_OPEN}{number}{_CLOSE}"


def without_placeholders(text: str) -> str:
    """A text that can't be taken for one."""
    return _BRACKETS.sub("", text)


@dataclass(slots=True)
class Rendering:
    """A template's text cut at its placeholders: `texts` stand around `numbers`, one more of them."""

    texts: list[str]
    numbers: list[int]

    @classmethod
    def of(cls, text: str) -> Rendering:
        """What a template made of a given."""
        parts = _PLACEHOLDER.split(text)
        return cls(parts[::2], [int(number) for number in parts[1::2]])

    def parts(
        self, known: Sequence[tuple[int, ...]] | Mapping[int, tuple[int, ...]]
    ) -> list[str | tuple[int, ...]]:
        """The texts, and between them the tokens that the placeholders stand for."""
        parts: list[str | tuple[int, ...]] = [self.texts[0]]
        for number, text in zip(self.numbers, self.texts[1:], strict=True):
            parts += known[number], text
        return parts

    @property
    def is_broken(self) -> bool:
        """Whether the template took a placeholder apart."""
        return any(_BRACKETS.search(text) for text in self.texts)

    def lost(self, traces: Sequence[Trace], start: int = 0) -> list[int]:
        """The messages that don't stand in it exactly once behind those before them; linear in its length. The first
        `start` characters are not theirs.

        Of a text it is only seen that it stands between its neighbours, not how often: it may repeat what they say.
        """
        places = self._places()
        lost: list[int] = []
        at, offset = 0, start  # where the last message found ends
        for index, (trace, end) in enumerate(zip(traces, self._ends(traces, places), strict=True)):
            sign = trace.sign
            if isinstance(sign, int):
                place = places.get(sign, -1)
                if place < (at if trace.is_ordered else 0):
                    lost.append(index)
                elif trace.is_ordered:
                    at, offset = place + 1, 0
            elif not trace.is_ordered:
                lost += [] if any(sign in text for text in self.texts) else [index]
            else:
                found = self._find(sign, at, offset, end)
                if found is None:
                    lost.append(index)
                else:
                    at, offset = found
        return lost

    def _places(self) -> dict[int, int]:
        """Where each placeholder stands; -1 for one that stands there twice."""
        places: dict[int, int] = {}
        for place, number in enumerate(self.numbers):
            places[number] = -1 if number in places else place
        return places

    def _ends(self, traces: Sequence[Trace], places: dict[int, int]) -> list[int]:
        """For each message the last of the texts that it may stand in: that before the next placeholder of another."""
        ends: list[int] = []
        end = len(self.texts) - 1
        for trace in reversed(traces):
            ends.append(end)
            if isinstance(trace.sign, int) and trace.is_ordered:
                place = places.get(trace.sign, -1)
                end = place if place >= 0 else end
        return ends[::-1]

    def _find(self, sign: str, at: int, offset: int, end: int) -> tuple[int, int] | None:
        """The text and the place in it where `sign` ends."""
        for number in range(at, end + 1):
            found = self.texts[number].find(sign, offset if number == at else 0)
            if found >= 0:
                return number, found + len(sign)
        return None

    def joined(self, changed: dict[int, tuple[str, int]]) -> Rendering:
        """With each two placeholders from a place in `changed` on, and the text between, as one: a text before it and a
        number."""
        texts: list[str] = []
        numbers: list[int] = []
        for place, number in enumerate(self.numbers):
            if place - 1 in changed:
                continue
            text, new = changed.get(place, (self.texts[place], number))
            texts.append(text)
            numbers.append(new)
        return Rendering([*texts, self.texts[-1]], numbers)

    def neighbours(self) -> dict[tuple[int, int], int]:
        """The place of the first of each two placeholders that follow one another."""
        return {pair: place for place, pair in enumerate(pairwise(self.numbers))}


def with_folded_system(messages: Sequence[Message]) -> Sequence[Message]:
    """The system text in front of the first message, for templates that know no system role."""
    if len(messages) < 2 or messages[0].role != "system":
        return messages
    system, first, *rest = messages
    return [replace(first, text=f"{system.text}\n\n{first.text}"), *rest]
