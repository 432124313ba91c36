"""The one application that owns the terminal: a live tail, the input and a toolbar, and finished text above them.

Nothing else may write to the terminal while it runs. Knows no session and no backend.
"""

from __future__ import annotations

import os
import re
import signal
from collections import deque
from collections.abc import Callable

from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindingsBase
from prompt_toolkit.key_binding.vi_state import InputMode
from prompt_toolkit.search import SearchDirection, start_search
from prompt_toolkit.utils import get_cwidth

from kvchat.ui.application import LiveApplication
from kvchat.ui.clean import styled
from kvchat.ui.entry import terminal_input
from kvchat.ui.live_part import Content, LivePart
from kvchat.ui.output import terminal_output

_KEPT_LINES = 500  # of what was printed, for a screen that is drawn anew
_SGR = re.compile(r"\x1b\[[0-9;]*m")


class Screen:
    """Shows what `content` says and prints finished text above it; `on_large_paste` is told of one that is not taken."""

    def __init__(
        self, content: Content, history: History, *, vi: bool, on_large_paste: Callable[[], None]
    ) -> None:
        self.output = terminal_output()
        self.buffer = Buffer(multiline=True, history=history)
        self.is_lent = False
        self._held: list[str] = []
        self._printed: deque[str] = deque(maxlen=_KEPT_LINES)
        layout = LivePart(content, self.buffer, self.output).layout()
        self.app = LiveApplication(terminal_input(on_large_paste), self.output, layout, vi=vi)

    def listen(self, keys: KeyBindingsBase) -> None:
        """Use these keys, beside those for editing text."""
        self.app.key_bindings = keys

    @property
    def columns(self) -> int:
        """Columns of the terminal."""
        return self.output.get_size().columns

    @property
    def mode(self) -> list[str]:
        """Vi's mode in a word, where the input has vi's keys."""
        if self.app.editing_mode is not EditingMode.VI:
            return []
        return ["INSERT" if self.app.vi_state.input_mode is InputMode.INSERT else "NORMAL"]

    def print_above(self, text: str) -> None:
        """Print lines above the input for good; `text` may carry SGR colours that we made ourselves."""
        if self.app.is_done:
            return
        text = styled(text)
        if self.is_lent:
            self._held.append(text)
            return
        self._printed.extend(text.split("\n"))
        with self.output.frame():
            self.app.erase()
            self._write_lines(text)
            self.app._redraw()

    def _write_lines(self, text: str) -> None:
        self.output.write_raw(text.replace("\n", "\r\n") + "\x1b[0m\r\n")

    def write(self, sequence: str) -> None:
        """Send a sequence of our own making that shows nothing."""
        if not self.app.is_done and not self.is_lent:
            self.output.write_raw(sequence)
            self.output.flush()

    async def lend(self, work: Callable[[], str]) -> str:
        """Give the terminal to what `work`, in a thread, starts; what is printed meanwhile comes after it."""
        self.is_lent = True
        try:
            return await run_in_terminal(work, in_executor=True)
        finally:
            self.is_lent = False
            held, self._held = self._held, []
            for text in held:
                self.print_above(text)

    def search(self) -> None:
        """Search the history backward, as it is typed."""
        start_search(direction=SearchDirection.BACKWARD)

    def clear(self) -> None:
        """Draw the visible screen again, with what was printed last and the live part below it."""
        if self.app.is_done or self.is_lent:
            return
        drawn = self.app.renderer.last_rendered_screen
        lines = self._last_lines(self.output.get_size().rows - (drawn.height if drawn else 1))
        with self.output.frame():
            self.app.erase()
            self.output.cursor_goto(1, 1)
            self.output.erase_down()
            if lines:
                self._write_lines("\n".join(lines))
            self.app._redraw()

    def _last_lines(self, num_rows: int) -> list[str]:
        """The lines printed last that take no more than so many rows."""
        lines: list[str] = []
        for line in reversed(self._printed):
            num_rows -= max(1, -(-get_cwidth(_SGR.sub("", line)) // self.columns))
            if num_rows < 0:
                break
            lines.insert(0, line)
        return lines

    def suspend(self) -> None:
        """Give the terminal back to the shell until it says `fg`."""

        def stop() -> None:
            os.kill(0, signal.SIGSTOP)

        if self.is_lent:
            stop()
        else:
            run_in_terminal(stop)

    def say_last(self, text: str) -> None:
        """Print a line after the dialogue has ended."""
        self.output.write_raw(styled(text) + "\r\n")
        self.output.flush()

    def leave(self, code: int) -> None:
        """End `run` with an exit code."""
        if not self.app.is_done:
            self.app.exit(result=code)
