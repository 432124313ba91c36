"""What a terminal is given of texts that others wrote; files and pipes get them as they are."""

from __future__ import annotations

import sys


def for_terminal(text: str) -> str:
    """Text as a terminal may have it; files and pipes get it as it is."""
    if not is_terminal():
        return text
    from kvchat.ui.render import sanitize

    return sanitize(text)


def is_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout.isatty()
