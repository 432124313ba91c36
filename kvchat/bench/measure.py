"""What every measurement needs: settings of its own, text to measure on, medians with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kvchat.backends.base import Answer, Backend, Done, Options, Turn
from kvchat.config import ByteSize, Config


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
        return f"{self.median:,.0f} ({self.low:,.0f}-{self.high:,.0f})"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


def english(num_tokens: int, count: Callable[[str], int], *, skip: int = 0) -> str:
    """English text of about `num_tokens` tokens: Python's own language reference, the same on every machine with the
    same Python. `skip` starts that many topics later."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics)[skip:])
    size = num_tokens * 4
    while count(text[:size]) > num_tokens:
        size = int(size * 0.97)
    while count(text[:size]) < num_tokens:
        size += 20
    return text[:size]


def isolated(config: Config, *, mode: str = "rw", ram: int = 2**30, disk: int = 0) -> Config:
    """The same model with a cache of its own: budgets in bytes, nothing saved unless `disk` is given."""
    cache = replace(config.cache, mode=mode, ram=ByteSize(ram), disk=ByteSize(disk))
    return replace(config, cache=cache, chat=replace(config.chat, save=disk > 0))


def ask(backend: Backend, history: Sequence[Turn], *, max_tokens: int = 1) -> Answer:
    """One greedy answer."""
    *_, last = backend.answer(history, Options(max_tokens=max_tokens, temperature=0.0))
    assert isinstance(last, Done)
    return last.answer


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, each column as wide as it needs."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
