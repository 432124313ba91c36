"""What `/copy` takes from an answer, and the sequence that gives it to a terminal's clipboard. Writes nothing itself."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from kvchat.errors import KvchatError, UsageError

MAX_BYTES = 74_000
"""What terminals take at once."""


def clipboard_sequence(text: str) -> str:
    """OSC 52: most terminals put its text on the clipboard, even over ssh. Raises KvchatError if it is too long."""
    data = text.encode("utf-8", "replace")
    if len(data) > MAX_BYTES:
        raise KvchatError(f"{len(data)} bytes are too much for a terminal's clipboard", "try /copy > FILE")
    return f"\x1b]52;c;{base64.b64encode(data).decode()}\x07"


def selection(answer: str, which: str) -> str:
    """An answer, or with `code N` its code block N (the last one without N). Raises UsageError."""
    word, _, number = which.partition(" ")
    if not word:
        return answer
    if word != "code" or (number and not number.strip().isdecimal()):
        raise UsageError(f"can't copy {which!r}", "see /copy in /help")
    blocks = code_blocks(answer)
    wanted = int(number or len(blocks))
    if not 1 <= wanted <= len(blocks):
        raise UsageError(_blocks_text(len(blocks)), "/copy without code takes all of it")
    return blocks[wanted - 1]


def _blocks_text(count: int) -> str:
    """How many blocks of code an answer has."""
    return f"that answer has {count or 'no'} {'block' if count == 1 else 'blocks'} of code"


def code_blocks(answer: str) -> list[str]:
    """The code of all blocks of an answer, each with the newline at its end."""
    from kvchat.chat.markup import markdown_parser

    return [
        token.content for token in markdown_parser().parse(answer) if token.type in ("fence", "code_block")
    ]


def write_new(name: str, text: str) -> Path:
    """Write a file that is not there yet, for the user alone, or to a device. Raises UsageError."""
    path = Path(name).expanduser()
    is_device = path.exists() and not (path.is_file() or path.is_dir())
    flags = os.O_WRONLY if is_device else os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else text + "\n")
    except FileExistsError:
        raise UsageError(f"{name} already exists", "name another file; nothing is overwritten") from None
    except OSError as error:
        raise UsageError(f"can't write {name}: {error.strerror}", "name another file") from error
    return path
