"""Bringing blocks of KV back from RAM and from disk, against computing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvchat.backends.base import ModelInfo, Role, Turn
from kvchat.bench.histories import Histories, opened
from kvchat.bench.measure import Spread, english, json_of, rounds, spreads
from kvchat.config import Config

LENGTHS = (250, 1000, 4000)
TIERS = ("ram", "disk")


@dataclass(frozen=True, slots=True)
class RestoreRow:
    """One length in tokens: milliseconds to compute it and to restore it, and how many tokens came from where.

    Where loading would be slower than computing the cache computes, and fewer are restored.
    """

    length: int
    ms: dict[str, Spread]
    tokens: dict[str, int]
    info: ModelInfo

    def to_json(self) -> dict[str, Any]:
        return {
            "bench": "restore",
            "length": self.length,
            "ms": json_of(self.ms),
            "restored_tokens": self.tokens,
            "kv_bytes": self.length * self.info.kv_bytes_per_token,
            "flops_saved": 2 * self.info.num_parameters * self.length,
        }

    def cells(self) -> dict[str, str]:
        computed = self.ms["computed"]
        times = {f"{name} ms": str(value) for name, value in self.ms.items()}
        ratios = {
            f"computed / {name}": f"{computed.median / self.ms[name].median:.1f}x"
            if self.tokens[name]
            else "-"
            for name in TIERS
        }
        sizes = {
            "KV MB": f"{self.length * self.info.kv_bytes_per_token / 1e6:.1f}",
            "GFLOP saved": f"{2 * self.info.num_parameters * self.length / 1e9:.0f}",
        }
        return {"length": str(self.length), **times, **ratios, **sizes}


def measure(config: Config, *, lengths: Sequence[int] = LENGTHS, repeats: int = 3) -> Iterator[RestoreRow]:
    """One row per length, as soon as it is measured."""
    with opened(config) as histories:
        info = histories.in_ram.info()
        for length in lengths:
            history = [Turn(Role.SYSTEM, english(length, histories.in_ram.count))]
            histories.compute(history)
            tokens: dict[str, int] = {}

            def once(name: str, history: Sequence[Turn] = history, tokens: dict[str, int] = tokens) -> float:
                return _ms(histories, name, history, tokens)

            found = rounds(("computed", *TIERS), repeats, once)
            yield RestoreRow(length, spreads(found), tokens, info)


def _ms(histories: Histories, name: str, history: Sequence[Turn], tokens: dict[str, int]) -> float:
    """Milliseconds to compute the prompt, or to restore what is stored of it."""
    answer = histories.ask("none" if name == "computed" else name, history)
    tokens[name] = answer.cache.tiers.get(name, 0)
    return answer.timings.prompt_ms if name == "computed" else answer.timings.kv_load_ms
