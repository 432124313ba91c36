"""Somebody who types a message: which text stands in the input when, drawn from a model of human typing; no model, no clock.

What it rests on, rounded: 136 million keystrokes of 168,000 people (Dhakal, Feit, Kristensson and Oulasvirta, CHI 2018)
have 52 words a minute on average, 239 ms between two keys with a standard deviation of 112 ms among people, and about 6
in 100 keys are Backspace. Gaps are longer in front of words than within them, and longest between sentences, as
keystroke studies of composed text find throughout. What they don't tell is assumed here: log-normal gaps; mistakes that
are noticed within three keys; a correction in the middle of one message in six, one in twelve with a paste; and a look
at what stands there before Enter, log-normal around 0.9 s, of which nine in ten take between 0.3 and 2.7 s.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass

KEY_S, KEY_SPREAD = 0.19, 0.45
"""Median gap between two keys within a word, and its log-normal spread; with words and corrections 0.24 s on average."""
WORD_S, SENTENCE_S = 0.16, 0.9
"""What is added in front of a word and behind a sentence, in the median."""
MISTAKES = 0.042
"""The share of keys that go wrong; with what is typed before it is noticed, 6 in 100 keys are Backspace."""
ENTER_S, ENTER_SPREAD = 0.9, 0.67
"""The pause before Enter."""
CORRECTED, PASTED = 1 / 6, 1 / 12

_GO_BACK_S = 0.8
_WORDS = ("really ", "just ", "also ", "perhaps ")


@dataclass(frozen=True, slots=True)
class Stroke:
    """At `at_s` seconds since the first key the input is `text`; `is_enter` marks the last, which sends it."""

    at_s: float
    text: str
    is_enter: bool = False


class Typist:
    """Draws everything from one seed, so that the same seed types the same."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._at_s = 0.0
        self._text = ""

    def strokes(self, message: str) -> Iterator[Stroke]:
        """The message as it is typed; what is sent is the message, perhaps with a word more in its middle."""
        self._at_s, self._text = 0.0, ""
        words = message.split(" ")
        pasted = self._random.randrange(len(words)) if self._is(PASTED) and len(words) > 4 else None
        for number, word in enumerate(words):
            head = " " if number else ""
            if number == pasted:
                yield self._after(self._gap(_GO_BACK_S), self._text + head + word)
            else:
                yield from self._typed(head + word)
        if self._is(CORRECTED) and len(words) > 3:
            yield from self._corrected()
        pause_s = self._random.lognormvariate(0, ENTER_SPREAD) * ENTER_S
        yield Stroke(self._at_s + pause_s, self._text, is_enter=True)

    def _typed(self, word: str) -> Iterator[Stroke]:
        for char in word:
            if char.isalpha() and self._is(MISTAKES):
                yield from self._mistaken()
            yield self._after(self._before(char), self._text + char)

    def _mistaken(self) -> Iterator[Stroke]:
        """Some wrong keys, and Backspace for each, behind a moment of noticing."""
        wrong = self._random.randint(1, 3)
        for _ in range(wrong):
            yield self._after(self._gap(KEY_S), self._text + self._random.choice(string.ascii_lowercase))
        for number in range(wrong):
            yield self._after(self._gap(KEY_S if number else 2 * KEY_S), self._text[:-1])

    def _corrected(self) -> Iterator[Stroke]:
        """A word more in the middle, typed there letter by letter."""
        at = self._random.choice([at for at, char in enumerate(self._text) if char == " "]) + 1
        before, after = self._text[:at], self._text[at:]
        self._at_s += self._gap(_GO_BACK_S)
        for char in self._random.choice(_WORDS):
            before += char
            yield self._after(self._gap(KEY_S), before + after)

    def _before(self, char: str) -> float:
        """The gap in front of a key."""
        gap_s = self._gap(KEY_S)
        if char == " " and self._text.endswith((".", "?", "!")):
            return gap_s + self._gap(SENTENCE_S)
        return gap_s + self._gap(WORD_S) if char == " " else gap_s

    def _after(self, gap_s: float, text: str) -> Stroke:
        self._at_s += gap_s if self._text else 0.0
        self._text = text
        return Stroke(self._at_s, text)

    def _gap(self, median_s: float) -> float:
        return self._random.lognormvariate(0, KEY_SPREAD) * median_s

    def _is(self, share: float) -> bool:
        return self._random.random() < share
