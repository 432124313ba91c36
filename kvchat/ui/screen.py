"""The one application that owns the terminal: a live tail, the input and a toolbar, and finished text above them.

Nothing else may write to the terminal while it runs. Knows no session and no backend.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prompt_toolkit.application import Application, run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Point, Size
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History
from prompt_toolkit.input.base import Input
from prompt_toolkit.key_binding import KeyBindingsBase
from prompt_toolkit.key_binding.vi_state import InputMode
from prompt_toolkit.layout import BufferControl, ConditionalContainer, HSplit, Layout, VerticalAlign, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.layout.processors import AfterInput, ConditionalProcessor, Processor, TabsProcessor
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.search import SearchDirection, start_search
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth
from prompt_toolkit.widgets import SearchToolbar

from kvchat.ui.answer import Tail
from kvchat.ui.clean import raw, sanitize, styled
from kvchat.ui.entry import AroundCursor, terminal_input
from kvchat.ui.reflow import Footprint

PROMPT = "> "
_INDENT = "  "
_KEPT_LINES = 500  # of what was printed, for a screen that is drawn anew
_SGR = re.compile(r"\x1b\[[0-9;]*m")
_ROWS_KEPT = 2  # one for what was said, one for the toolbar
_BEGIN_SYNC = "\x1b[?2026h"
_END_SYNC = "\x1b[?2026l"
_STYLE = Style.from_dict(
    {"tail": "", "thought": "dim", "wait": "dim", "queued": "italic", "toolbar": "noreverse", "hint": "bold"}
)


class FramedOutput(Vt100_Output):
    """A terminal that is written to once a frame, so that nothing half-drawn is ever seen.

    `rewraps` tells that it rewraps its rows by the rules of tmux when it gets narrower.
    """

    rewraps = False
    _depth = 0

    @contextmanager
    def frame(self) -> Iterator[None]:
        """All that is written inside reaches the terminal in one piece."""
        self._depth += 1
        if self._depth == 1:
            self.write_raw(_BEGIN_SYNC)
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.write_raw(_END_SYNC)
                self.flush()

    def erase_down(self) -> None:
        """Erase all behind the cursor, the first cell last: tmux keeps a screen that is erased from its first cell."""
        self.write_raw("\x1b7\x1b[C\x1b[J\x1b8\x1b[K")

    def flush(self) -> None:
        """Write what is buffered, unless a frame is being made."""
        if self._depth == 0:
            super().flush()


def terminal_output() -> FramedOutput:
    """stdout as a terminal. Never asks where the cursor is: some terminals don't answer."""
    term = os.environ.get("TERM", "")
    output = FramedOutput(raw(sys.stdout), _terminal_size, term=term or None, enable_cpr=False)
    output.rewraps = "TMUX" in os.environ or term.startswith("tmux")
    return output


def _terminal_size() -> Size:
    """Rows and columns; a terminal that says nothing, or 0, counts as 24 by 80."""
    try:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        columns, rows = 0, 0
    return Size(rows=rows or 24, columns=columns or 80)


@dataclass(frozen=True, slots=True)
class Content:
    """What the screen shows, asked for at every redraw with the screen's columns; the tail also with its rows."""

    tail: Callable[[int, int], Tail]
    queued: Callable[[int], list[str]]
    toolbar: Callable[[int], str]
    placeholder: Callable[[], str] = str


class _Application(Application[int]):
    """Draws the live part, and knows where it begins when the terminal has rewrapped it."""

    def __init__(self, source: Input, output: FramedOutput, layout: Layout, *, vi: bool) -> None:
        self._footprint = Footprint()
        self._columns = 0  # of the terminal when the live part was drawn
        super().__init__(
            layout=layout,
            editing_mode=EditingMode.VI if vi else EditingMode.EMACS,
            style=_STYLE,
            input=source,
            output=output,
            erase_when_done=True,
            after_render=lambda app: self._footprint.grow(app.renderer),
        )
        self._rewraps = output.rewraps
        self.ttimeoutlen = 0.05
        self.timeoutlen = 0.3

    def erase(self) -> None:
        """Erase the live part from its first row on, wherever that is now."""
        columns = self.output.get_size().columns
        if self._rewraps and columns < self._columns:
            above = self._footprint.rows_above(self.renderer._cursor_pos, columns)
            self.renderer._cursor_pos = Point(x=columns, y=above)
        self._columns = columns
        self.renderer.erase(leave_alternate_screen=False)
        self._footprint.clear()

    def _redraw(self, render_as_done: bool = False) -> None:
        """Draw; the terminal may have another width by now, though nobody has said so yet."""
        if self.output.get_size().columns != self._columns:
            self.erase()
        super()._redraw(render_as_done)

    def _on_resize(self) -> None:
        self.erase()
        self._redraw()


class Screen:
    """Shows what `content` says and prints finished text above it; `on_large_paste` is told of one that is not taken."""

    def __init__(
        self, content: Content, history: History, *, vi: bool, on_large_paste: Callable[[], None]
    ) -> None:
        self.output = terminal_output()
        self.buffer = Buffer(multiline=True, history=history)
        self.is_lent = False
        self._content = content
        self._held: list[str] = []
        self._printed: deque[str] = deque(maxlen=_KEPT_LINES)
        self._search = SearchToolbar(
            forward_search_prompt="search forward: ", backward_search_prompt="search: "
        )
        layout = Layout(self._root(), focused_element=self.buffer)
        self.app = _Application(terminal_input(on_large_paste), self.output, layout, vi=vi)

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
        """Draw the visible screen anew, with what was printed last and the live part below it."""
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

    def _tail(self) -> StyleAndTextTuples:
        """The newest rows of the tail that leave room for the input."""
        room = self._room()
        tail = self._content.tail(max(1, self.columns - 1), max(1, room))
        rows = tail.rows[-room:] if room > 0 else []
        return _lines(rows, f"class:{tail.kind}") if rows else []

    def _room(self) -> int:
        """Rows for the tail: all that the input and what stands around it leave.

        Where the terminal rewraps, half of the screen, so that a tail that is twice as high on half of the columns does
        not scroll out, where nothing could erase it.
        """
        rows, columns = self.output.get_size().rows, self.columns
        lines = self.buffer.text.split("\n", rows)
        entry = sum(1 + (get_cwidth(line[: rows * columns]) + len(_INDENT)) // columns for line in lines)
        taken = min(entry, self._entry_rows()) + len(self._content.queued(columns)) + _ROWS_KEPT
        return min(rows - taken, rows // 2 if self.output.rewraps else rows)

    def _entry_rows(self) -> int:
        """Most rows that the input takes."""
        return max(1, self.output.get_size().rows - 10)

    def _hint(self) -> Processor:
        """Shows the placeholder in an empty input."""
        return ConditionalProcessor(
            AfterInput(lambda: self._content.placeholder()[: max(0, self.columns - 4)], style="class:wait"),
            Condition(lambda: not self.buffer.text),
        )

    def _root(self) -> HSplit:
        live = Window(
            FormattedTextControl(self._tail),
            dont_extend_height=True,
            wrap_lines=False,
        )
        queued = Window(
            FormattedTextControl(lambda: _lines(self._content.queued(self.columns), "class:queued")),
            dont_extend_height=True,
        )
        entry = Window(
            BufferControl(
                self.buffer,
                input_processors=[AroundCursor(), TabsProcessor(char1=" ", char2=" "), self._hint()],
                search_buffer_control=self._search.control,
                preview_search=True,
            ),
            height=lambda: Dimension(min=1, max=self._entry_rows()),
            dont_extend_height=True,
            wrap_lines=True,
            get_line_prefix=_line_prefix,
        )
        bar = Window(
            FormattedTextControl(lambda: _lines([self._content.toolbar(self.columns)], "class:toolbar")),
            height=1,
            dont_extend_height=True,
        )
        rows: list[Any] = [
            ConditionalContainer(live, Condition(lambda: bool(self._tail()))),
            ConditionalContainer(queued, Condition(lambda: bool(self._content.queued(self.columns)))),
            entry,
            self._search,
            bar,
        ]
        return HSplit(rows, align=VerticalAlign.TOP)


def _lines(lines: list[str], style: str) -> StyleAndTextTuples:
    return [(style, sanitize("\n".join(lines)))]


def _line_prefix(number: int, wrap_count: int) -> StyleAndTextTuples:
    first = number == 0 and wrap_count == 0
    return [("class:prompt bold", PROMPT if first else _INDENT)]
