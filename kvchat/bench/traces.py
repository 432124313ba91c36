"""Traces: which blocks each prompt asked for, and when; read, written and made up. Holds no text, knows no cache.

A line is a request: `timestamp` in ms, `input_length` and `output_length` in tokens, `hash_ids`, a number for every block,
from the first on; equal numbers are equal prefixes up to there (the form of Mooncake, FAST'25, arXiv 2407.00079). There
the last block of a prompt may be partial, and what was answered shows in the next prompt only. kvchat's own form says
its `block_size`, numbers full blocks alone, and goes on behind the prompt with those that the answer filled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvchat.errors import UsageError

_MAX_BYTES = 2**32


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt: `blocks` from the first on, of which the first `num_asked` belong to the prompt; time in seconds."""

    time_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    num_asked: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their times, over blocks of `block_size` tokens."""

    block_size: int
    requests: tuple[Request, ...]

    @property
    def num_unique(self) -> int:
        """Blocks that differ."""
        return len({block for request in self.requests for block in request.blocks})


def read(path: Path) -> Trace:
    """The trace in a file. Raises UsageError for a file that is none or can't be read."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} is too large for a trace", "give a file of at most 4 GiB")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return _trace(lines)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}", "give the file of a trace") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        form = "every line needs timestamp, input_length, output_length and hash_ids"
        raise UsageError(f"{path} is not a trace: {error}", form) from None


def write(trace: Trace, path: Path) -> None:
    """Write a trace in kvchat's own form. Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines(trace))


def lines(trace: Trace) -> Iterator[str]:
    """The lines of a trace in kvchat's own form."""
    for request in trace.requests:
        row = {
            "timestamp": round(request.time_s * 1000),
            "input_length": request.input_tokens,
            "output_length": request.output_tokens,
            "block_size": trace.block_size,
            "hash_ids": request.blocks,
        }
        yield json.dumps(row)


def renumbered(chains: Iterable[Sequence[bytes]]) -> Iterator[tuple[int, ...]]:
    """Numbers in place of block hashes, the same for the same: of what was hashed nothing is left."""
    numbers: dict[bytes, int] = {}
    for chain in chains:
        yield tuple(numbers.setdefault(digest, len(numbers)) for digest in chain)


def _trace(rows: Sequence[dict[str, Any]]) -> Trace:
    if not rows:
        raise ValueError("it is empty")
    own = {int(row["block_size"]) for row in rows if "block_size" in row}
    block_size = own.pop() if own else _block_size(rows)
    if own or block_size < 1:
        raise ValueError("its block_size has to be the same number, at least 1, in every line")
    requests = sorted((_request(row, block_size) for row in rows), key=lambda request: request.time_s)
    return Trace(block_size, tuple(requests))


def _request(row: dict[str, Any], block_size: int) -> Request:
    blocks = tuple(int(block) for block in row["hash_ids"])
    input_tokens = int(row["input_length"])
    if len(set(blocks)) != len(blocks) or input_tokens < 0:
        raise ValueError("a block stands twice in one prompt, or a length is negative")
    num_asked = min(len(blocks), input_tokens // block_size) if "block_size" in row else len(blocks)
    return Request(float(row["timestamp"]) / 1000, input_tokens, int(row["output_length"]), blocks, num_asked)


def _block_size(rows: Sequence[dict[str, Any]]) -> int:
    """The smallest power of two for which no prompt has fewer blocks than its tokens need."""
    needed = max(row["input_length"] / len(row["hash_ids"]) for row in rows if row["hash_ids"])
    size = 1
    while size < needed:
        size *= 2
    return size
