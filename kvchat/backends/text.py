"""From a stream of text to what a reader gets: stop strings end it, reasoning is told apart. Knows no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_QUOTES = ("`", "'", '"')


@dataclass(frozen=True, slots=True)
class Passage:
    """Some of the answer's text, or of the reasoning in front of it; `end` is where it ends in all that came in.

    With `recalls`, all that was given before as the answer's was reasoning too: its end came, and its beginning had not.
    """

    text: str
    is_reasoning: bool
    end: int = 0
    recalls: bool = False


def held_back(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` could be the beginning of one of `marks`."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0


class StopScanner:
    """Lets text through until the first of the stop strings, which it keeps back.

    Once it is hit, `rest` says how many characters came from the stop string's first on. One may have begun at the end of
    `before`, text that was let through already; then the last `retracted` characters of that belong to it.
    """

    def __init__(self, stops: Sequence[str], before: str = "") -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = before[len(before) - held_back(before, self._stops) :]
        self._num_shown = len(self._held)  # of what is held
        self.is_hit = False
        self.rest = 0
        self.retracted = 0

    def feed(self, text: str) -> str:
        """What of the text so far may be shown now."""
        if self.is_hit:
            return ""
        text = self._held + text
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            self.is_hit, self._held, self.rest = True, "", len(text) - min(found)
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

    The marks themselves, white space around them, and the `lead` and `tail` that an answer may have belong to neither.
    Reasoning that ends and had no beginning is recognized by its end, see Passage.
    """

    def __init__(
        self, marks: tuple[str, str] | None, *, is_open: bool = False, lead: str = "", tail: str = ""
    ) -> None:
        self._marks = marks
        self._lead, self._tail = lead, tail
        self._state = "answer" if marks is None else "reasoning" if is_open else "start"
        self._held = ""
        self._taken = 0  # characters that came in
        self._last = ""  # the last of them that was handed out
        self._begun = marks is None  # the answer's first visible character came
        self._may_recall = marks is not None and not is_open

    def feed(self, text: str) -> list[Passage]:
        """The pieces that are certain now."""
        self._held += text
        self._taken += len(text)
        pieces: list[Passage] = []
        while self._step(pieces):
            pass
        return [piece for piece in pieces if piece.text or piece.recalls]

    def finish(self) -> list[Passage]:
        """What was held back."""
        held, self._held = self._held, ""
        if self._state == "reasoning":
            return [Passage(held, True, self._taken)] if held else []
        return [Passage(held, False, self._taken)] if held and (self._begun or held.strip()) else []

    def _step(self, pieces: list[Passage]) -> bool:
        """One transition; False when more text is needed."""
        if self._state == "start":
            return self._find_opening()
        if self._state == "reasoning":
            return self._find_closing(pieces)
        if self._state == "lead":
            return self._find_lead()
        if not self._begun:
            self._held = self._held.lstrip()
            self._begun = bool(self._held)
        return self._find_end(pieces)

    def _give(self, pieces: list[Passage], size: int, *, drop: int = 0, recalls: bool = False) -> None:
        """Hand out the first `size` characters of what is held, and leave out `drop` behind them."""
        text, self._held = self._held[:size], self._held[size:]
        self._last = text[-1:] or self._last
        is_reasoning = recalls or self._state == "reasoning"
        pieces.append(Passage(text, is_reasoning, self._taken - len(self._held), recalls))
        self._held = self._held[drop:]

    def _find_opening(self) -> bool:
        assert self._marks is not None
        opening = self._marks[0]
        text = self._held.lstrip()
        if text.startswith(opening):
            self._held, self._state = text[len(opening) :].lstrip(), "reasoning"
            self._may_recall = False
            return True
        if self._lead and text.startswith(self._lead):
            self._held, self._state = text[len(self._lead) :], "answer"
            return True
        if opening.startswith(text) or self._lead.startswith(text):
            return False
        self._state, self._begun = "answer", True
        return True

    def _find_closing(self, pieces: list[Passage]) -> bool:
        assert self._marks is not None
        closing = self._marks[1]
        position = self._held.find(closing)
        if position >= 0:
            text = self._held[:position].rstrip()
            self._give(pieces, len(text), drop=position - len(text) + len(closing))
            self._state = "lead"
            return True
        sure = len(self._held) - held_back(self._held, [closing])
        self._give(pieces, len(self._held[:sure].rstrip()))
        return False

    def _find_lead(self) -> bool:
        """What may stand between the end of the reasoning and the answer."""
        text = self._held.lstrip()
        if self._lead and text.startswith(self._lead):
            self._held, self._state = text[len(self._lead) :], "answer"
            return True
        if self._lead and self._lead.startswith(text):
            return False
        self._state = "answer"
        return True

    def _find_end(self, pieces: list[Passage]) -> bool:
        """The next thing in the answer that is not to be read: its tail, or the end of a reasoning without beginning."""
        watched = [self._tail] if self._tail else []
        watched += self._marks if self._marks is not None and self._may_recall else ()
        found = [(place, mark) for mark in watched if (place := self._held.find(mark)) >= 0]
        if not found:
            self._give(pieces, len(self._held) - held_back(self._held, watched))
            return False
        place, mark = min(found)
        if mark == self._tail:
            self._give(pieces, place, drop=len(mark))
            self._tail = ""
        elif self._marks is not None and mark == self._marks[1] and not self._is_quoted(place):
            self._give(pieces, place, drop=len(mark), recalls=True)
            self._state, self._begun, self._may_recall = "lead", False, False
        else:
            self._give(pieces, place + len(mark))
            self._may_recall = False
        return True

    def _is_quoted(self, place: int) -> bool:
        """Whether a quotation mark stands before this place in what is held."""
        return (self._held[place - 1] if place else self._last) in _QUOTES
