"""One saved prompt: a Markdown file with a YAML head and a Jinja body. Reads it and renders it.

Only regular files of a bounded size are read, and whatever stands in them ends in a UsageError at worst. The body is
strict (an undefined variable is an error) and sandboxed; beside its variables it may call `today()` and `now(format)`,
and include files of its own folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from kvchat.errors import UsageError, reason_of
from kvchat.prompts.head import head_of, nearest
from kvchat.prompts.rendering import rendered

_MAX_BYTES = 2**20
_MAX_SAID = 500  # characters of a message about a file, its path among them


class Shelf(StrEnum):
    """Where a prompt stands."""

    HERE = "here"
    YOURS = "yours"
    SHIPPED = "shipped"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. `first_line` is the line of its file where `body` begins.

    `vars` maps each variable to its default, None where a value has to be given. `options` are sampling options.
    """

    name: str
    path: Path
    shelf: Shelf
    body: str
    first_line: int = 1
    description: str = ""
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    vars: Mapping[str, str | None] = field(default_factory=dict)
    pin: bool = False

    def settings(self, system: str) -> dict[str, object]:
        """What it sets, as `load_config` takes it; `system` is its rendered text."""
        options = {f"sampling.{name}": value for name, value in self.options.items()}
        return {"chat.system": system, "chat.pin": self.pin, "model.name": self.model, **options}

    def render(self, values: Mapping[str, str], now: datetime) -> str:
        """Its text with these variables. Raises UsageError: a value too many or too few, or an error in the body."""
        for name in values:
            if name not in self.vars:
                raise UsageError(f"{self.path} has no variable {name!r}", nearest(name, self.vars))
        given = {name: values.get(name, default) for name, default in self.vars.items()}
        for name, value in given.items():
            if value is None:
                raise UsageError(f"{self.path} needs a value for {name!r}", f"give --var {name}=VALUE")
        return rendered(self.body, given, path=self.path, first_line=self.first_line, now=now)


def read_prompt(path: Path, shelf: Shelf) -> Prompt:
    """The prompt in a file. Raises UsageError, with the line, for what is wrong in its head."""
    try:
        text = prompt_text(path).lstrip("\ufeff").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"can't read the prompt in {path}: {reason_of(error)}", "check the path") from None
    try:
        return _prompt_in(text, path, shelf)
    except UsageError as error:
        raise UsageError(_bounded(error.message), _bounded(error.remedy)) from None
    except Exception as error:  # YAML runs into whatever its dates, numbers and nesting run into
        reason = _bounded(" ".join(str(error).split())) or type(error).__name__
        raise UsageError(f"{path}: its head can't be read: {reason}", "fix the head; it is YAML") from None


def prompt_text(path: Path) -> str:
    """What stands in a regular file. Raises OSError, and ValueError for another, and for one that is too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its writer
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it is longer than {_MAX_BYTES} bytes")
    return content.decode("utf-8")


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_SAID else text[:_MAX_SAID] + " …"


def _prompt_in(text: str, path: Path, shelf: Shelf) -> Prompt:
    head, body, first_line = _split(text, path)
    values = head_of(head, path)
    return Prompt(
        path.stem,
        path,
        shelf,
        body,
        first_line,
        values.text("description") or "",
        values.text("model"),
        values.options(),
        values.variables(),
        values.flag("pin"),
    )


def _split(text: str, path: Path) -> tuple[str, str, int]:
    """Head, body, and the line where the body begins."""
    lines = text.split("\n")
    if lines[0].rstrip() != "---":
        return "", text.strip("\n"), 1 + len(text) - len(text.lstrip("\n"))
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() == "---":
            start = number + 1
            while start + 1 < len(lines) and not lines[start].strip():
                start += 1
            return "\n".join(lines[1:number]), "\n".join(lines[start:]).rstrip(), start + 1
    raise UsageError(f"{path}, line 1: the head is never closed", "close it with a line of ---")
