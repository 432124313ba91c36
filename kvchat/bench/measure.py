"""What every measurement needs: settings of its own, text to measure on, rounds in which all take turns, spreads."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from kvchat.backends.base import Answer, Backend, Done, Options, Turn
from kvchat.config import ByteSize, Config
from kvchat.errors import ContextOverflowError, UsageError


class Row(Protocol):
    """One line of a measurement's result."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""

    def cells(self) -> dict[str, str]:
        """What a table shows, by the column's heading."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Several runs of one measurement, in the unit of what was measured."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The median and the extremes of what was measured."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


def rounds(names: Sequence[str], repeats: int, once: Callable[[str], float]) -> dict[str, list[float]]:
    """`repeats` measurements `once(name)` of each name, after one that does not count.

    All take turns, each round another one first, so that all see the same machine.
    """
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repeats + 1):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            value = once(name)
            if number:
                found[name].append(value)
    return found


def spreads(found: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """Each name's median and extremes."""
    return {name: Spread.of(values) for name, values in found.items()}


def paired(found: Mapping[str, Sequence[float]], of: str) -> dict[str, Spread]:
    """How many times each name's measurement is that of the name `of`, round by round."""
    return {
        name: Spread.of([value / base for value, base in zip(values, found[of], strict=True)])
        for name, values in found.items()
        if name != of
    }


def json_of(values: Mapping[str, Spread]) -> dict[str, Any]:
    """Spreads by name, JSON-ready."""
    return {name: spread.to_json() for name, spread in values.items()}


def english(num_tokens: int, count: Callable[[str], int], *, skip: int = 0) -> str:
    """English text of about `num_tokens` tokens: Python's own language reference, the same on every machine with the
    same Python. `skip` starts that many topics later. Raises UsageError if the text is too short."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics)[skip:])
    end = num_tokens
    while num_tokens > len(text) or count(text[:end]) < num_tokens:
        if end >= len(text):
            raise UsageError(
                f"the text to measure on has fewer than {num_tokens} tokens", "measure fewer tokens"
            )
        end *= 2
    return text[: bisect_left(range(end), num_tokens, key=lambda size: count(text[:size]))]


def isolated(config: Config, *, mode: str = "rw", ram: int = 2**30, disk: int = 0) -> Config:
    """The same model with a cache of its own: budgets in bytes, nothing saved unless `disk` is given."""
    cache = replace(config.cache, mode=mode, ram=ByteSize(ram), disk=ByteSize(disk))
    return replace(config, cache=cache, chat=replace(config.chat, save=disk > 0))


def check_room(num_tokens: int, context: int) -> None:
    """Raises ContextOverflowError if the model has no context for so many tokens."""
    if num_tokens > context:
        raise ContextOverflowError(
            f"measuring takes {num_tokens} tokens of context, the model has {context}",
            "measure on fewer tokens",
        )


def one_by_one(config: Config) -> Config:
    """The same without guessing ahead: what a token costs is measured, not how often a guess is right."""
    return replace(config, model=replace(config.model, draft=0))


def ask(backend: Backend, history: Sequence[Turn], *, max_tokens: int = 1) -> Answer:
    """One greedy answer."""
    *_, last = backend.answer(
        history, Options(max_tokens=max_tokens, temperature=0.0, repetition_penalty=1.0)
    )
    assert isinstance(last, Done)
    return last.answer


def use_threads(threads: int | None) -> int:
    """Let torch compute with so many threads, by default as many as it takes; returns how many those are."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
