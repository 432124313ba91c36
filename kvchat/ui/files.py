"""Files as parts of a message: `@file` in its text, and what `/read` takes along. Knows no session."""

from __future__ import annotations

import re
from pathlib import Path

from kvchat.errors import UsageError
from kvchat.ui.mentions import mentioned_files

MAX_BYTES = 256 * 1024
"""Largest file that is taken; more than any context here holds."""

MAX_INPUT_BYTES = 64 * 2**20
"""Most that is read of a pipe, or of what else stands for a message; no context holds so much."""

_FENCE = re.compile(r"^`{3,}", re.MULTILINE)


def with_files(text: str) -> str:
    """A message followed by the content of every file that it mentions; what is no file stays a word.

    A file that it has already is not added again. Raises UsageError for a file that can't be a message's part, and for
    too many.
    """
    parts = [text]
    for name in mentioned_files(text):
        if not any(_heading(name) in part for part in parts):
            parts.append(file_part(name))
    return "\n\n".join(parts)


def file_part(name: str) -> str:
    """A file's content under a heading with its name. Raises UsageError: not there, no text, or too large."""
    text = _content(name).rstrip("\n")
    fence = "`" * (1 + max((len(found) for found in _FENCE.findall(text)), default=2))
    return f"{_heading(name)}\n\n{fence}\n{text}\n{fence}"


def whole_text(name: str) -> str:
    """The text of a file that was named, without a byte order mark. Raises OSError, RuntimeError and ValueError."""
    with Path(name).expanduser().open("rb") as file:
        data = file.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise ValueError(f"it is larger than {MAX_INPUT_BYTES // 2**20} MiB")
    return data.decode("utf-8-sig")


def _heading(name: str) -> str:
    return f"## {name}"


def _content(name: str) -> str:
    try:
        with Path(name).expanduser().open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"can't read {name}: {why}", "check the path") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name} is larger than {MAX_BYTES // 1024} KiB", "send only the part that matters")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"{name} is not a text file", "only text files can go into a message")
    return text.replace("\r\n", "\n")
