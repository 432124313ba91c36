"""Decoding speed in tokens per second, against how many tokens are held already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvchat.bench.contender import OURS, Setup, running
from kvchat.bench.measure import Spread, check_room, json_of, paired, rounds, spreads
from kvchat.bench.plot import Chart
from kvchat.bench.prompts import token_ids
from kvchat.bench.theory import Theory

DEPTHS = (16, 1024, 4096)
NUM_TOKENS = 48
"""Tokens generated in each measurement."""


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One depth in tokens: each contender's tokens per second, how many times as fast ours is, and what we read for it."""

    depth: int
    tokens_per_s: dict[str, Spread]
    times_theirs: dict[str, Spread]
    theory: Theory

    @property
    def bandwidth_share(self) -> float:
        """The share of the machine's memory bandwidth that we use."""
        return self.theory.share_of_bandwidth(self.depth, self.tokens_per_s[OURS].median)

    def to_json(self) -> dict[str, Any]:
        return {
            "bench": "decode",
            "depth": self.depth,
            "tokens_per_s": json_of(self.tokens_per_s),
            "times_theirs": json_of(self.times_theirs),
            "bytes_read_per_token": self.theory.bytes_read(self.depth),
            "bandwidth_share": self.bandwidth_share,
            "theory": self.theory.to_json(),
        }

    def cells(self) -> dict[str, str]:
        speeds = {f"{name} tok/s": str(speed) for name, speed in self.tokens_per_s.items()}
        ratios = {f"of {name}": f"{ratio.median:.2f}x" for name, ratio in self.times_theirs.items()}
        read = {"MB read per token": f"{self.theory.bytes_read(self.depth) / 1e6:.0f}"}
        share = {"of bandwidth": f"{100 * self.bandwidth_share:.0f}%"}
        return {"depth": str(self.depth), **speeds, **ratios, **read, **share}


def measure(
    setup: Setup, against: Sequence[str] = (), *, lengths: Sequence[int] = DEPTHS, repeats: int = 3
) -> Iterator[DecodeRow]:
    """One row per depth, as soon as it is measured."""
    with running((OURS, *against), setup) as contenders:
        theory = Theory.of(contenders[OURS].facts)
        for depth in lengths:
            check_room(depth + NUM_TOKENS, contenders[OURS].facts["context"])
            prompt = token_ids(setup.config, depth)

            def speed(name: str, prompt: Sequence[int] = prompt) -> float:
                return (NUM_TOKENS - 1) / contenders[name].answer(prompt, NUM_TOKENS).rest_s

            found = rounds(list(contenders), repeats, speed)
            slower = {name: [1 / value for value in values] for name, values in found.items()}
            yield DecodeRow(depth, spreads(found), paired(slower, OURS), theory)


def chart(rows: Sequence[DecodeRow]) -> Chart:
    """Tokens per second against depth, one line per contender."""
    lines = {name: [row.tokens_per_s[name] for row in rows] for name in rows[0].tokens_per_s}
    return Chart("Decoding speed", "tokens held", "tokens per second", [row.depth for row in rows], lines)
