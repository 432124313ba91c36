"""How what takes long says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`, from time to time; `total` 0 means unknown."""


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""
