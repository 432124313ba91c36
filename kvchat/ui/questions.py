"""What is asked without a dialogue: a prompt, piped text, or the lines of a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from kvchat.errors import UsageError, reason_of
from kvchat.ui.files import MAX_INPUT_BYTES


def one_message(prompt: str | None, piped: str) -> list[str]:
    """What is asked: the piped text first, then the prompt. Raises UsageError when that is nothing."""
    message = "\n\n".join(part for part in (piped.strip("\n"), prompt or "") if part.strip())
    if not message:
        raise UsageError("nothing to ask", "give a prompt with -p, or pipe text in")
    return [message]


def messages_of(lines: Iterable[str]) -> Iterator[str]:
    """The user messages of a `--turns` file: one a line, or a JSON string a line; empty lines are skipped."""
    for number, raw in enumerate(lines):
        line = (raw if number else raw.removeprefix("\ufeff")).rstrip("\r\n")
        if not line.strip():
            continue
        try:
            value = json.loads(line) if line.lstrip().startswith('"') else line
        except ValueError:
            value = line
        if value.strip():
            yield value


def open_turns(name: str, stdin: TextIO) -> Iterator[str]:
    """The lines of `--turns FILE`, or of stdin for `-`. Raises UsageError."""
    if name == "-":
        return _lines(stdin)
    try:
        return _lines(Path(name).expanduser().open(encoding="utf-8", errors="replace"))
    except (OSError, RuntimeError, ValueError) as error:
        why, remedy = reason_of(error), "see --turns in kvchat --help"
        raise UsageError(f"can't read the turns in {name}: {why}", remedy) from None


def _lines(stream: TextIO) -> Iterator[str]:
    while line := stream.readline(MAX_INPUT_BYTES + 1):
        if len(line) > MAX_INPUT_BYTES:
            raise UsageError(f"a line has more than {MAX_INPUT_BYTES} characters", "shorten it")
        yield line
