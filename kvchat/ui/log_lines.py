"""Warnings that the program logs, as lines of a dialogue. Knows no screen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def log_lines(say: Callable[[str], None]) -> Iterator[None]:
    """As long as this is open, `say` is given every warning, in whatever thread it comes."""
    handler = _LogLines(say)
    logging.getLogger("kvchat").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("kvchat").removeHandler(handler)


class _LogLines(logging.Handler):
    """Warnings of the program as lines above the input."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        self._say(record.getMessage())
