"""What a measurement could reach in theory: bytes to read and operations to do, against this machine's memory."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import Any

_READ_BYTES = 2**28
_NUM_READS = 7


@dataclass(frozen=True, slots=True)
class Theory:
    """One model on one machine: of its `weights_bytes` a decoded token reads `token_bytes`, as `weights` (int4, native).

    `read_bytes_per_s` is what reading memory was measured to reach.
    """

    kv_bytes_per_token: int
    weights_bytes: int
    token_bytes: int
    weights: str
    num_parameters: int
    read_bytes_per_s: float

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Theory:
        """From what our contender says about itself; measures the memory."""
        names = [item.name for item in fields(cls)][:-1]
        return cls(**{name: facts[name] for name in names}, read_bytes_per_s=read_bandwidth())

    def bytes_read(self, depth: int) -> int:
        """What decoding one token behind `depth` others has to read: the weights, and their KV."""
        return self.token_bytes + depth * self.kv_bytes_per_token

    def share_of_bandwidth(self, depth: int, tokens_per_s: float) -> float:
        """The share of the machine's memory bandwidth that so many tokens per second use."""
        return self.bytes_read(depth) * tokens_per_s / self.read_bytes_per_s

    def prefill_flops(self, num_tokens: int) -> int:
        """Operations that prefilling takes: one multiplication and one addition per parameter and token."""
        return 2 * self.num_parameters * num_tokens

    def lines(self) -> list[str]:
        """The figures as lines for a person."""
        return [
            f"KV {self.kv_bytes_per_token / 1e3:.1f} kB per token; of {self.weights_bytes / 1e6:.0f} MB of weights a token "
            f"reads {self.token_bytes / 1e6:.0f} MB ({self.weights})",
            f"memory is read at up to {self.read_bytes_per_s / 1e9:.1f} GB/s here: at most "
            f"{self.read_bytes_per_s / self.bytes_read(0):.0f} tokens/s in an empty context",
            f"prefilling a token takes {self.prefill_flops(1) / 1e9:.2f} GFLOP, which a cache hit saves",
        ]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


def read_bandwidth() -> float:
    """Bytes per second that all of torch's threads together read from memory; the best of several large reads."""
    import torch

    block = torch.ones(_READ_BYTES // 8, dtype=torch.int64)
    best = float("inf")
    for _ in range(_NUM_READS):
        started = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - started)
    return _READ_BYTES / best
