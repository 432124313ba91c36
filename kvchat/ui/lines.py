"""The dialogue line by line, for dumb terminals and screen readers: nothing on the screen is ever changed."""

from __future__ import annotations

import shutil
from contextlib import closing
from typing import TextIO

from kvchat.backends.base import Done, Notice, Text
from kvchat.chat.session import Session, is_empty
from kvchat.errors import KvchatError
from kvchat.ui import commands
from kvchat.ui.cache_watch import CacheWatch
from kvchat.ui.clipboard import clipboard_sequence
from kvchat.ui.oneshot import interruptible
from kvchat.ui.render import error_line, sanitize, stats_line
from kvchat.ui.tables import Look


class LineDialogue:
    """Reads a line, answers it, reads the next. The same session and commands as the full dialogue."""

    def __init__(self, session: Session, stdout: TextIO) -> None:
        self.session = session
        self._out = stdout
        self._leaving = False
        self._watch = CacheWatch(session)

    @property
    def look(self) -> Look:
        """Plain words, as wide as the terminal is."""
        return Look(shutil.get_terminal_size().columns, plain=True)

    def leave(self) -> None:
        """End the dialogue after the command that asks for it."""
        self._leaving = True

    def copy(self, text: str) -> None:
        """Put a text on the terminal's clipboard."""
        self._write(clipboard_sequence(text))

    def run(self) -> int:
        """Hold the dialogue until the input ends; the exit code."""
        while not self._leaving:
            try:
                text = self._read()
                if text:
                    self._do(text)
            except EOFError:
                self._write("\n")
                break
            except KeyboardInterrupt:
                self._write("\nCtrl-D leaves\n")
            except KvchatError as error:
                self._write(error_line(error.message, error.remedy) + "\n")
        return 0

    def _read(self) -> str:
        """One message; a trailing backslash continues it on the next line."""
        lines = [input("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input("  "))
        return "\n".join(lines).strip()

    def _do(self, text: str) -> None:
        if commands.is_command(text):
            command, argument = commands.find(text)
            self._write(sanitize(command.run(self, argument)) + "\n")
        else:
            self._answer(text.removeprefix("/") if text.startswith("//") else text)

    def _answer(self, text: str) -> None:
        backend = self.session.backend
        with interruptible(backend), closing(self.session.send(text)) as events:
            for event in events:
                if isinstance(event, Text) and not event.reasoning:
                    self._write(sanitize(event.text))
                elif isinstance(event, Notice):
                    self._write(error_line(event.message) + "\n")
                elif isinstance(event, Done):
                    self._write("\n" + stats_line(event.answer, backend.info().context) + "\n")
                    if is_empty(event.answer):
                        self._write("the message was taken back\n")
        self._watch.look()

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
