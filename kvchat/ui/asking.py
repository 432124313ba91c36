"""Questions and notes before a dialogue, on stderr: stdout is the answers'. Knows nothing of what is asked."""

from __future__ import annotations

import sys


def can_ask() -> bool:
    """Whether a person reads stderr and types."""
    return all(
        stream is not None and not stream.closed and stream.isatty() for stream in (sys.stdin, sys.stderr)
    )


def agrees(question: str) -> bool | None:
    """Whether the user says yes; None for neither yes nor no."""
    print(f"kvchat: {question} [y/n] ", end="", file=sys.stderr, flush=True)
    said = sys.stdin.readline().strip().lower()
    return {"y": True, "yes": True, "n": False, "no": False}.get(said)


def tell(line: str) -> None:
    """Say a line that is no error."""
    print(f"kvchat: {line}", file=sys.stderr, flush=True)
