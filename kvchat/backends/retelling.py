"""A conversation over a stream of lines: only what it grew by since the last call is told again. Knows no stream.

Each side remembers what was told last, its history one way and the ids of prompt and answer the other. Both follow the
same rules, so neither has to ask; and who does not remember is told all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

from kvchat.backends.turn import Role, Turn
from kvchat.backends.wire import to_wire


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids of the prompt and the answer of call `number`."""

    number: int = 0
    ids: Sequence[int] = ()


class History:
    """The history that was told last; one at either side of a stream."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []

    def telling(self, turns: Sequence[Turn]) -> Any:
        """How these are told, JSON-ready. Has no effect until they are `told`."""
        same = self._num_same(turns)
        rest = to_wire(list(turns[same:]))
        return {"same": same, "then": rest} if same else rest

    def told(self, turns: Sequence[Turn]) -> None:
        """These were told; the beginning of what is remembered adds nothing."""
        if self._num_same(turns) < len(turns):
            self._turns = list(turns)

    def heard(self, value: Any) -> list[Turn]:
        """The turns that were told. Raises KeyError, TypeError or ValueError where that was no history."""
        same, rest = (value["same"], value["then"]) if isinstance(value, dict) else (0, value)
        if not 0 <= same <= len(self._turns):
            raise ValueError("a history that was never told")
        turns = [*self._turns[:same], *map(_turn, rest)]
        self.told(turns)
        return turns

    def _num_same(self, turns: Sequence[Turn]) -> int:
        for at, is_one in enumerate(map(is_, turns, self._turns)):
            if not (is_one or _is_same(turns[at], self._turns[at])):
                return at
        return min(len(turns), len(self._turns))


def prompt_telling(prompt: Sequence[int], known: Ids) -> Any:
    """How a prompt's ids are told to who knows the ids of an answer before, JSON-ready."""
    same = _num_equal(known.ids, prompt)
    return {"same": same, "then": list(prompt[same:])} if same else list(prompt)


def prompt_heard(value: Any, known: Ids) -> Any:
    """The prompt that was told. Raises KeyError or TypeError where it was none."""
    return [*known.ids[: value["same"]], *value["then"]] if isinstance(value, dict) else value


def _num_equal(left: Sequence[int], right: Sequence[int]) -> int:
    """With how many equal ids both begin; bisected, so that it costs a few comparisons of whole stretches."""
    low, high = 0, min(len(left), len(right))
    left, right = tuple(left[:high]), tuple(right[:high])
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle - 1)
    return low


def _is_same(one: Turn, other: Turn) -> bool:
    """Whether two turns are told in the same words; their comparison leaves out what makes no other prompt."""
    return one == other and one.time_s == other.time_s and one.pinned == other.pinned


def _turn(value: Mapping[str, Any]) -> Turn:
    """One turn from JSON; written out, because a long history has many."""
    tokens = value["tokens"]
    return Turn(
        role=Role(value["role"]),
        text=value["text"],
        reasoning=value["reasoning"],
        tokens=None if tokens is None else tuple(tokens),
        tokenizer=value["tokenizer"],
        time_s=value["time_s"],
        pinned=value["pinned"],
        tools=value.get("tools", ""),
        extra=value.get("extra", ""),
    )
