"""Notices that a text goes round in circles, word for word or nearly, so that an answer need not go on for ever.

Works on words, so it costs a few microseconds a token and touches no sampling. Knows no tokens and no model.
"""

from __future__ import annotations

import re
from collections import Counter, deque

CYCLE_WORDS = 120
"""Words that an exact cycle covers before it counts as one."""
SHORT_CYCLE_WORDS = 60
"""The same for a sentence of at least five words that comes six times on end, which no refrain does."""
PASSAGE_WORDS = 30
"""A passage of so many is a loop once half of it has come for the third time; a shorter one has to come a third time whole."""
CODE_WORDS = 400
"""The same inside a code fence or a table, and for cycles without a letter: zeros of a matrix, lines of a drawing."""
NEAR_WORDS = 200
"""The stretch over which nearly everything must have been said before, twice at least."""
NEAR_SHARE = 0.95
NEAR_NEW = 2
"""So many words of that stretch at most may be ones that the text has never used before; a list or a quiz in one frame has
a new one in each item."""

_LEAST_TIMES = 3
_PASSAGE_TIMES = 2.5
_MANY_TIMES = 6
_SENTENCE_WORDS = 5
_GRAM = 5
_SEED = 3
_LINE_WORDS = 40  # of a long line, so many are looked at together
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc"
)
_WORD = re.compile(rf"\n|[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]+")
"""A line's end, a character of a script without spaces, a word or number, or a run of punctuation."""


class RepetitionWatch:
    """Follows one text as it grows.

    It loops when its end is one passage several times over, word for word but for the numbers of list items, or when
    almost all of a long stretch has been said at least twice before and it brings hardly a new word. Refrains, tables,
    quotations and repetitive code stay below both bounds.
    """

    def __init__(self) -> None:
        self.is_looping = False
        self._held = ""  # the last word, which may grow
        self._line: list[str] = []
        self._is_continued = False  # the line began before what is held of it
        self._is_code = False
        self._is_row = False  # of a table
        self._cycle = _Cycle()
        self._echo = _Echo()

    def feed(self, text: str) -> bool:
        """Take what is new; whether the text loops by now."""
        words = _WORD.findall(self._held + text)
        self._held = words.pop() if words and words[-1] != "\n" and not (text and text[-1].isspace()) else ""
        for word in words:
            self._line.append(word)
            if word == "\n" or len(self._line) >= _LINE_WORDS:
                self._take_line()
        return self.is_looping

    def _take_line(self) -> None:
        line, self._line = self._line, []
        if not self._is_continued and line[0].startswith(("```", "~~~")):
            self._is_code = not self._is_code
        if not self._is_continued:
            self._is_row = line[0].startswith("|")
        is_data = self._is_code or self._is_row
        words = line if self._is_continued or is_data else _without_number(line)
        for word in words:
            self._cycle.take(word)
            if not is_data:
                self._echo.take(word)
        self._is_continued = line[-1] != "\n"
        self.is_looping |= self._cycle.is_found(is_data=is_data) or self._echo.is_found


class _Cycle:
    """The end of the text as one passage over and over: its period, and how far it goes back."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._last_at: dict[tuple[str, ...], int] = {}
        self._period = 0
        self._length = 0  # words at the end that are equal to those one period before

    def take(self, word: str) -> None:
        """One more word."""
        words = self._words
        words.append(word)
        now = len(words)
        if self._period and words[-1 - self._period] == word:
            self._length += 1
        else:
            before = self._last_at.get(tuple(words[-_SEED:]))
            self._period, self._length = (now - before, _SEED) if before else (0, 0)
        self._last_at[tuple(words[-_SEED:])] = now

    def is_found(self, *, is_data: bool) -> bool:
        """Whether that is a loop and no refrain."""
        covered, period = self._length + self._period, self._period
        least_times = _LEAST_TIMES if is_data or period < PASSAGE_WORDS else _PASSAGE_TIMES
        if covered < SHORT_CYCLE_WORDS or covered < least_times * period or not period:
            return False
        is_said = any(char.isalpha() for word in self._words[-period:] for char in word)
        if is_data or not is_said:
            return covered >= CODE_WORDS
        is_sentence = period >= _SENTENCE_WORDS and covered >= _MANY_TIMES * period
        return covered >= (SHORT_CYCLE_WORDS if is_sentence else CYCLE_WORDS)


class _Echo:
    """How much of the latest stretch stands in runs of words that came twice before."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, ...]] = Counter()
        self._recent: deque[str] = deque(maxlen=_GRAM)
        self._is_old: deque[bool] = deque(maxlen=NEAR_WORDS)
        self._vocabulary: set[str] = set()
        self._is_new: deque[bool] = deque(maxlen=NEAR_WORDS)

    def take(self, word: str) -> None:
        """One more word."""
        self._recent.append(word)
        gram = tuple(self._recent)
        self._is_old.append(False)
        self._is_new.append(word.isalpha() and word not in self._vocabulary)
        self._vocabulary.add(word)
        if len(gram) == _GRAM:
            if self._seen[gram] >= _LEAST_TIMES - 1:
                for back in range(1, min(_GRAM, len(self._is_old)) + 1):
                    self._is_old[-back] = True
            self._seen[gram] += 1

    @property
    def is_found(self) -> bool:
        """Whether the stretch is full and holds next to nothing new."""
        if len(self._is_old) < NEAR_WORDS or sum(self._is_old) < NEAR_SHARE * NEAR_WORDS:
            return False
        return sum(self._is_new) <= NEAR_NEW


def _without_number(line: list[str]) -> list[str]:
    """A line whose number as an item of a list is a mark: the same item again is the same line."""
    words = [word for word in line if word[0].isalpha()]
    place = next((at for at, word in enumerate(line[:3]) if word.isdecimal()), None)
    is_item = place == 0 and len(line) > 2 and line[1] in (".", ")")
    if place is None or not words or not (is_item or len(line) >= (5 if place == 0 else 8)):
        return line
    return [*line[:place], "#", *line[place + 1 :]]
