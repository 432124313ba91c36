"""From a stream of text to what a reader gets: stop strings end it, reasoning is told apart. Knows no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the answer's text, or of the reasoning in front of it."""

    text: str
    is_reasoning: bool


def held_back(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` could be the beginning of one of `marks`."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0


class StopScanner:
    """Lets text through until the first of the stop strings, which it keeps back.

    One may have begun at the end of `before`, text that was let through already; then the last `retracted` characters
    of that belong to it.
    """

    def __init__(self, stops: Sequence[str], before: str = "") -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = before[len(before) - held_back(before, self._stops) :]
        self._num_shown = len(self._held)  # of what is held
        self.is_hit = False
        self.retracted = 0

    def feed(self, text: str) -> str:
        """What of the text so far may be shown now."""
        if self.is_hit:
            return ""
        text = self._held + text
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            self.is_hit, self._held = True, ""
            self.retracted = max(0, self._num_shown - min(found))
            return text[self._num_shown : min(found)]
        end = len(text) - held_back(text, self._stops)
        new = text[self._num_shown : end]
        self._held, self._num_shown = text[end:], max(0, self._num_shown - end)
        return new

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held[self._num_shown :], ""
        return held


class ReasoningSplitter:
    """Tells reasoning (between `marks`, at the very beginning) from the answer, as the text comes in.

    The marks themselves, white space around them, and the `lead` of an answer without reasoning belong to neither.
    """

    def __init__(self, marks: tuple[str, str] | None, *, is_open: bool = False, lead: str = "") -> None:
        self._marks = marks
        self._lead = lead
        self._state = "answer" if marks is None else "reasoning" if is_open else "start"
        self._held = ""
        self._begun = marks is None  # the answer's first visible character came

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return [piece for piece in pieces if piece.text]

    def finish(self) -> list[Piece]:
        """What was held back."""
        held, self._held = self._held, ""
        if self._state == "reasoning":
            return [Piece(held, True)] if held else []
        return [Piece(held, False)] if held and (self._begun or held.strip()) else []

    def _step(self, pieces: list[Piece]) -> bool:
        """One transition; False when more text is needed."""
        if self._state == "start":
            return self._find_opening()
        if self._state == "reasoning":
            return self._find_closing(pieces)
        if not self._begun:
            self._held = self._held.lstrip()
            self._begun = bool(self._held)
        pieces.append(Piece(self._held, False))
        self._held = ""
        return False

    def _find_opening(self) -> bool:
        assert self._marks is not None
        opening = self._marks[0]
        text = self._held.lstrip()
        if text.startswith(opening):
            self._held, self._state = text[len(opening) :].lstrip(), "reasoning"
            return True
        if self._lead and text.startswith(self._lead):
            self._held, self._state = text[len(self._lead) :], "answer"
            return True
        if opening.startswith(text) or self._lead.startswith(text):
            return False
        self._state, self._begun = "answer", True
        return True

    def _find_closing(self, pieces: list[Piece]) -> bool:
        assert self._marks is not None
        closing = self._marks[1]
        position = self._held.find(closing)
        if position >= 0:
            pieces.append(Piece(self._held[:position].rstrip(), True))
            self._held, self._state = self._held[position + len(closing) :], "answer"
            return True
        keep = held_back(self._held, [closing])
        space = len(self._held[: len(self._held) - keep]) - len(self._held[: len(self._held) - keep].rstrip())
        keep += space
        pieces.append(Piece(self._held[: len(self._held) - keep], True))
        self._held = self._held[len(self._held) - keep :]
        return False
