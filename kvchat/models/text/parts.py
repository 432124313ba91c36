"""Prompts as parts, texts and known tokens in turn: encoding them, and telling an answer's reasoning from the rest."""

from __future__ import annotations

from collections.abc import Sequence

from kvchat.models.text.reasoning import ReasoningMarks
from kvchat.models.text.tokenizer import ChatTokenizer

Part = str | tuple[int, ...]
"""A text that is still to be encoded, or tokens."""
MANY_PARTS = 8
"""So few parts are encoded anew each time: what is remembered of a longer prompt is worth more."""


class PartsEncoder:
    """Encodes the parts of prompts; what one begins with as the long one before it did was encoded then."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._parts: Sequence[Part] = ()
        self._ends: list[int] = []  # where each part ends in the tokens
        self._tokens: list[int] = []

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """The tokens of all parts."""
        same = num_same(parts, self._parts)
        ends = self._ends[:same]
        tokens = self._tokens[: ends[-1]] if ends else []
        for place, part in enumerate(parts[same:], same):
            if part:
                tokens += self._tokenizer.encode(part, is_start=not place) if isinstance(part, str) else part
            ends.append(len(tokens))
        if len(parts) > MANY_PARTS:
            self._parts, self._ends, self._tokens = parts, ends, tokens
        return list(tokens)


def num_same(parts: Sequence[object], others: Sequence[object]) -> int:
    """With how many equal ones both begin."""
    pairs = enumerate(zip(parts, others, strict=False))
    most = min(len(parts), len(others))
    return next((at for at, (one, other) in pairs if one is not other and one != other), most)


def parted(
    tokenizer: ChatTokenizer, ids: tuple[int, ...], marks: ReasoningMarks
) -> tuple[str, tuple[int, ...], bool]:
    """The words of an answer's reasoning, the ids of what follows it, and whether the first mark is among the ids."""
    cut = _end_of_reasoning(tokenizer, ids, marks.end)
    said, answer = tokenizer.decode(ids[:cut]).strip(), ids[cut:]
    while answer and tokenizer.is_blank(answer[0]):
        answer = answer[1:]
    words = said.removeprefix(marks.start).removesuffix(marks.end).strip()
    return words, answer, said.startswith(marks.start)


def _end_of_reasoning(tokenizer: ChatTokenizer, ids: tuple[int, ...], mark: str) -> int:
    single = tokenizer.control.get(mark)
    if single is not None and single in ids:
        return ids.index(single) + 1
    stream = tokenizer.stream()
    text = ""
    for count, token in enumerate(ids, 1):
        text += stream.push(token)
        if mark in text:
            return count
    return len(ids)
