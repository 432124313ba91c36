"""A shell command beside the dialogue, and its output as part of a message. Knows no screen."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass

MAX_BYTES = 64_000
"""Most of a command's output that is kept; the command is ended when it writes more."""


def is_shell_command(text: str) -> bool:
    """Whether a message is `!command`; an exclamation mark that a blank follows is meant."""
    return len(text) > 1 and text[0] == "!" and not text[1].isspace() and text[1] != "!"


@dataclass(frozen=True, slots=True)
class Output:
    """What a command wrote, on both streams, and its exit code (negative: the signal that ended it)."""

    command: str
    text: str
    code: int

    @property
    def message(self) -> str:
        """As part of a message to the model."""
        return f"Output of `{self.command}`:\n\n```\n{self.text}\n```"

    @property
    def num_lines(self) -> int:
        """Lines of the output."""
        return len(self.text.splitlines())


class ShellCommand:
    """A command of /bin/sh in a process group of its own, with nothing to read."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._process = subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def output(self) -> Output:
        """Wait for its end."""
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            data = stream.read(MAX_BYTES)
            if stream.read(1):
                self.end()
                data += b"\n(cut here)"
        text = data.decode("utf-8", "replace").rstrip()
        return Output(self._command, text, self._process.wait())

    def end(self) -> None:
        """End it and all that it started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
