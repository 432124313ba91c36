"""Prefill speed in tokens per second, for prompts of which nothing is held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvchat.bench.contender import OURS, Setup, running
from kvchat.bench.measure import Spread, check_room, json_of, paired, rounds, spreads
from kvchat.bench.plot import Chart
from kvchat.bench.prompts import token_ids
from kvchat.bench.theory import Theory

LENGTHS = (256, 1024)


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """One length in tokens: each contender's tokens per second, and how many times as fast ours is."""

    length: int
    tokens_per_s: dict[str, Spread]
    times_theirs: dict[str, Spread]
    theory: Theory

    def to_json(self) -> dict[str, Any]:
        return {
            "bench": "prefill",
            "length": self.length,
            "tokens_per_s": json_of(self.tokens_per_s),
            "times_theirs": json_of(self.times_theirs),
            "flops": self.theory.prefill_flops(self.length),
            "theory": self.theory.to_json(),
        }

    def cells(self) -> dict[str, str]:
        speeds = {f"{name} tok/s": str(speed) for name, speed in self.tokens_per_s.items()}
        ratios = {f"of {name}": f"{ratio.median:.2f}x" for name, ratio in self.times_theirs.items()}
        reached = self.theory.prefill_flops(1) * self.tokens_per_s[OURS].median / 1e9
        return {"length": str(self.length), **speeds, **ratios, "GFLOP/s": f"{reached:.0f}"}


def measure(
    setup: Setup, against: Sequence[str] = (), *, lengths: Sequence[int] = LENGTHS, repeats: int = 3
) -> Iterator[PrefillRow]:
    """One row per length, as soon as it is measured."""
    with running((OURS, *against), setup) as contenders:
        theory = Theory.of(contenders[OURS].facts)
        for length in lengths:
            check_room(length + 1, contenders[OURS].facts["context"])
            prompt = token_ids(setup.config, length)

            def speed(name: str, prompt: Sequence[int] = prompt) -> float:
                return len(prompt) / contenders[name].answer(prompt, reuse=False).first_s

            found = rounds(list(contenders), repeats, speed)
            slower = {name: [1 / value for value in values] for name, values in found.items()}
            yield PrefillRow(length, spreads(found), paired(slower, OURS), theory)


def chart(rows: Sequence[PrefillRow]) -> Chart:
    """Tokens per second against length, one line per contender."""
    lines = {name: [row.tokens_per_s[name] for row in rows] for name in rows[0].tokens_per_s}
    return Chart(
        "Prefill speed", "tokens of the prompt", "tokens per second", [row.length for row in rows], lines
    )
