"""What Tab makes of the text before the cursor: commands, their arguments, files behind an `@`. Knows no screen."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kvchat.errors import KvchatError
from kvchat.ui import commands
from kvchat.ui.desk import Desk

_MAX_FILES = 200


@dataclass(frozen=True, slots=True)
class Completion:
    """What the text from `start` on may become."""

    start: int
    names: list[str]

    @property
    def certain(self) -> str:
        """As much as is certain; a complete word that is no folder with a blank behind it."""
        if not self.names:
            return ""
        if len(self.names) == 1:
            return self.names[0] + ("" if self.names[0].endswith("/") else " ")
        return commands.common_start(self.names)


def completion(text: str, desk: Desk) -> Completion:
    """What the text before the cursor may become."""
    word = text.split()[-1] if text and not text[-1].isspace() else ""
    if commands.is_command(text) and "\n" not in text:
        if word == text:
            return Completion(0, commands.completions(text))
        argument = text.partition(" ")[2]
        names = [name for name in _choices(text, desk, argument) if name.startswith(argument)]
        if names or not word.startswith("@"):
            return Completion(len(text) - len(argument), names)
    if word.startswith("@"):
        return Completion(len(text) - len(word) + 1, _files(word[1:]))
    return Completion(len(text), [])


def _choices(text: str, desk: Desk, argument: str) -> list[str]:
    """What may follow a command's name."""
    try:
        command, _ = commands.find(text)
        return _files(argument) if command.takes_file else list(command.choices(desk))
    except KvchatError:
        return []


def _files(start: str) -> list[str]:
    """Files and folders whose path begins so; hidden ones only when asked for."""
    folder, _, name = start.rpartition("/")
    shown_folder = folder + "/" if "/" in start else ""
    try:
        found = sorted(os.scandir(Path(shown_folder or ".").expanduser()), key=lambda entry: entry.name)
    except OSError:
        return []
    return [
        f"{shown_folder}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in found
        if entry.name.startswith(name) and (name or not entry.name.startswith("."))
    ][:_MAX_FILES]
