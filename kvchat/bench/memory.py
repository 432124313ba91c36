"""The peak of resident memory of a process, over a chat of some length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvchat.bench.contender import OURS, Setup, running
from kvchat.bench.measure import check_room
from kvchat.bench.prompts import token_ids

LENGTHS = (2000,)
NUM_TOKENS = 32


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """The peak of each contender in bytes: when it was ready, and behind a chat of `length` tokens."""

    length: int
    ready_bytes: dict[str, int]
    peak_bytes: dict[str, int]
    kv_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "bench": "memory",
            "length": self.length,
            "ready_bytes": self.ready_bytes,
            "peak_bytes": self.peak_bytes,
            "kv_bytes": self.kv_bytes,
        }

    def cells(self) -> dict[str, str]:
        peaks = {
            f"{name} MB (when ready)": f"{peak / 1e6:,.0f} ({self.ready_bytes[name] / 1e6:,.0f})"
            for name, peak in self.peak_bytes.items()
        }
        return {"chat": str(self.length), **peaks, "its KV MB": f"{self.kv_bytes / 1e6:.0f}"}


def measure(
    setup: Setup, *, lengths: Sequence[int] = LENGTHS, against: Sequence[str] = ()
) -> Iterator[MemoryRow]:
    """One row per length, each measured in fresh children."""
    for length in lengths:
        with running((OURS, *against), setup) as contenders:
            facts = contenders[OURS].facts
            check_room(length, facts["context"])
            prompt = token_ids(setup.config, length - NUM_TOKENS)
            ready = {name: child.peak_bytes() for name, child in contenders.items()}
            for start in range(len(prompt) // 4, len(prompt), max(1, len(prompt) // 4)):
                for child in contenders.values():
                    child.answer(prompt[:start], 1)
            for child in contenders.values():
                child.answer(prompt, NUM_TOKENS)
            peaks = {name: child.peak_bytes() for name, child in contenders.items()}
            yield MemoryRow(length, ready, peaks, length * facts["kv_bytes_per_token"])
