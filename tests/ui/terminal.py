"""A real child behind a pseudo-terminal, and a terminal emulator that shows what a person would see."""

import os
import re
import signal
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

LFLAG = 3
TIMEOUT_S = 60.0
DRAWING_S = 0.5


class Terminal:
    """kvchat in a terminal of a given size, with the scripted backend unless another `module` is run.

    Whatever is waited for comes within `timeout_s`. All its folders are its own; without `own_models` the user's models are used.
    """

    timeout_s = TIMEOUT_S

    def __init__(
        self,
        folder: Path,
        *argv: str,
        columns: int = 100,
        rows: int = 24,
        environ: dict[str, str] | None = None,
        module: str = "tests.scripted_cli",
        own_models: bool = True,
    ) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name == "KVCHAT_SHARE" or (not name.startswith("KVCHAT_") and name not in ("NO_COLOR", "TMUX"))
        }
        names = ("CACHE_DIR", "DATA", "CONFIG", *(("MODELS",) if own_models else ()))
        folders = {f"KVCHAT_{name}": str(folder / name) for name in names}
        folders |= {name: str(folder / name) for name in ("OLLAMA_MODELS", "LLAMA_CACHE", "HF_HUB_CACHE")}
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", module, *argv],
            env=kept | folders | {"TERM": "xterm-256color"} | (environ or {}),
            dimensions=(rows, columns),
            encoding=None,
            timeout=TIMEOUT_S,
        )
        self.child.delaybeforesend = None
        self.child.ptyproc.delayafterclose = 0.0
        self.screen = pyte.HistoryScreen(columns, rows, history=5000, ratio=0.5)
        self.raw = b""
        self._num_answers = 0
        self._stream = pyte.ByteStream(self.screen)

    def ready(self) -> "Terminal":
        """Wait until the prompt is there and the child takes keys itself: before, the kernel would echo them."""
        self.until(lambda: not termios.tcgetattr(self.child.child_fd)[LFLAG] & termios.ICANON, "raw mode")
        self.until(lambda: any(row.startswith(">") for row in self.visible), "the prompt")
        return self

    def type(self, text: str) -> None:
        self.child.send(text.encode())

    def enter(self, text: str) -> None:
        self.type(text + "\r")

    def paste(self, text: str) -> None:
        self.type(f"\x1b[200~{text}\x1b[201~")

    def read(self) -> None:
        """Show what the child has written, until it pauses; of an answer without end, some."""
        deadline = time.monotonic() + DRAWING_S
        try:
            while time.monotonic() < deadline:
                self.read_some(0.02)
        except (pexpect.TIMEOUT, pexpect.EOF):
            pass

    def read_some(self, timeout_s: float) -> None:
        """Show what comes first. Raises pexpect.TIMEOUT and pexpect.EOF."""
        data = self.child.read_nonblocking(65536, timeout=timeout_s)
        self.raw += data
        self._stream.feed(data)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.timeout_s
        while not condition():
            self.read()
            assert time.monotonic() < deadline, f"never came: {what}\n" + "\n".join(self.rows)

    def wait_for(self, text: str) -> None:
        """Wait until a text stands somewhere in what was ever shown."""
        self.until(lambda: text in "\n".join(self.rows), repr(text))

    def settle(self) -> None:
        """Wait until one more answer has ended: its line of figures was printed."""
        self._num_answers += 1
        self.until(
            lambda: len(re.findall(rb"cached \d+/\d+ \(", self.raw)) >= self._num_answers,
            "the end of the answer",
        )

    @property
    def visible(self) -> list[str]:
        rows = [row.rstrip() for row in self.screen.display]
        while len(rows) > 1 and not rows[-1]:
            rows.pop()
        return rows

    @property
    def rows(self) -> list[str]:
        """Everything that was ever scrolled out, then what is visible."""
        old = [
            "".join(line[x].data if x in line else " " for x in range(self.screen.columns)).rstrip()
            for line in self.screen.history.top
        ]
        return old + self.visible

    def resize(self, columns: int, rows: int) -> None:
        """Resize as terminals do: blank rows at the bottom go first, then the top rows scroll out."""
        self.read()
        screen, fewer = self.screen, self.screen.lines - rows
        blank = screen.lines - 1 - max(screen.cursor.y, len(self.visible) - 1)
        scrolled = max(0, fewer - blank)
        for y in range(scrolled):
            screen.history.top.append(dict(screen.buffer[y]))
        cursor = (screen.cursor.x, screen.cursor.y)
        if fewer > scrolled:
            screen.cursor_position(1, 1)
            screen.insert_lines(fewer - scrolled)
        self.child.setwinsize(rows, columns)
        screen.resize(rows, columns)
        screen.cursor_position(cursor[1] - scrolled + 1, cursor[0] + 1)

    def kill(self, signum: signal.Signals) -> None:
        self.child.kill(signum)

    def end(self) -> int:
        """The child's exit code, once it has ended."""
        self.until(lambda: not self.child.isalive(), "the child's end")
        self.read()
        assert "Traceback" not in "\n".join(self.rows)
        assert self.child.exitstatus is not None, f"killed by signal {self.child.signalstatus}"
        return int(self.child.exitstatus)

    def hang_up(self) -> int:
        """Close the terminal under the child; its exit code."""
        self.child.ptyproc.fileobj.close()
        self.child.closed = self.child.terminated = self.child.ptyproc.terminated = True
        _, status = os.waitpid(self.child.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def leave(self) -> None:
        """Ctrl-D ends it in order."""
        self.type("\x04")
        assert self.end() == 0

    @property
    def is_cursor_shown(self) -> bool:
        return not self.screen.cursor.hidden


def figures(rows: list[str]) -> list[str]:
    """The lines of figures after answers."""
    return [row for row in rows if re.match(r"cached \d+/\d+ \(\d+%\) · prefill ", row)]
