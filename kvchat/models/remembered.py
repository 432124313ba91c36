"""What was found out once, kept in a JSON file between runs: only a memory, so what can't be read or written is no error."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import read_object


def recall(path: Path) -> dict[str, Any]:
    """What stands in the file; nothing where it is missing or damaged."""
    try:
        return read_object(path)
    except (OSError, ModelUnavailableError):
        return {}


def remember(path: Path, content: Mapping[str, Any]) -> None:
    """Put `content` in the place of what stood there, whole or not at all; what dead processes left of it goes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in path.parent.glob(f".{path.name}.*"):
            if not _is_alive(leftover.suffix[1:]):
                leftover.unlink(missing_ok=True)
        try:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _is_alive(pid: str) -> bool:
    """Whether a process of that number runs, or nobody can tell."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except (OSError, ValueError):  # somebody else's, or no number
        return True
    return True
