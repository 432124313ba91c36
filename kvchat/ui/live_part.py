"""The live part of the screen: a tail, what is queued, the input and a toolbar, and how many rows each may take.

Asks for what it shows at every redraw. Knows no session and prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout import BufferControl, ConditionalContainer, HSplit, Layout, VerticalAlign, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.layout.processors import AfterInput, ConditionalProcessor, Processor, TabsProcessor
from prompt_toolkit.utils import get_cwidth
from prompt_toolkit.widgets import SearchToolbar

from kvchat.ui.answer import Tail
from kvchat.ui.clean import sanitize
from kvchat.ui.entry import AroundCursor
from kvchat.ui.output import FramedOutput

PROMPT = "> "
_INDENT = "  "
_ROWS_KEPT = 2  # one for what was said, one for the toolbar


@dataclass(frozen=True, slots=True)
class Content:
    """What the screen shows, asked for at every redraw with the screen's columns; the tail also with its rows."""

    tail: Callable[[int, int], Tail]
    queued: Callable[[int], list[str]]
    toolbar: Callable[[int], str]
    placeholder: Callable[[], str] = str


class LivePart:
    """The rows that are drawn again and again, as prompt_toolkit's layout."""

    def __init__(self, content: Content, buffer: Buffer, output: FramedOutput) -> None:
        self._content = content
        self._buffer = buffer
        self._output = output
        self._search = SearchToolbar(
            forward_search_prompt="search forward: ", backward_search_prompt="search: "
        )

    def layout(self) -> Layout:
        """The layout, with the keys going to the input."""
        return Layout(self._root(), focused_element=self._buffer)

    @property
    def _columns(self) -> int:
        return self._output.get_size().columns

    def _tail(self) -> StyleAndTextTuples:
        """The newest rows of the tail that leave room for the input."""
        room = self._room()
        tail = self._content.tail(max(1, self._columns - 1), max(1, room))
        rows = tail.rows[-room:] if room > 0 else []
        return _lines(rows, f"class:{tail.kind}") if rows else []

    def _room(self) -> int:
        """Rows for the tail: all that the input and what stands around it leave.

        Where the terminal rewraps, half of the screen, so that a tail that is twice as high on half of the columns does
        not scroll out, where nothing could erase it.
        """
        rows, columns = self._output.get_size().rows, self._columns
        lines = self._buffer.text.split("\n", rows)
        entry = sum(1 + (get_cwidth(line[: rows * columns]) + len(_INDENT)) // columns for line in lines)
        taken = min(entry, self._entry_rows()) + len(self._content.queued(columns)) + _ROWS_KEPT
        return min(rows - taken, rows // 2 if self._output.rewraps else rows)

    def _entry_rows(self) -> int:
        """Most rows that the input takes."""
        return max(1, self._output.get_size().rows - 10)

    def _hint(self) -> Processor:
        """Shows the placeholder in an empty input."""
        return ConditionalProcessor(
            AfterInput(lambda: self._content.placeholder()[: max(0, self._columns - 4)], style="class:wait"),
            Condition(lambda: not self._buffer.text),
        )

    def _root(self) -> HSplit:
        live = Window(
            FormattedTextControl(self._tail),
            dont_extend_height=True,
            wrap_lines=False,
        )
        queued = Window(
            FormattedTextControl(lambda: _lines(self._content.queued(self._columns), "class:queued")),
            dont_extend_height=True,
        )
        entry = Window(
            BufferControl(
                self._buffer,
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
            FormattedTextControl(lambda: _lines([self._content.toolbar(self._columns)], "class:toolbar")),
            height=1,
            dont_extend_height=True,
        )
        rows: list[Any] = [
            ConditionalContainer(live, Condition(lambda: bool(self._tail()))),
            ConditionalContainer(queued, Condition(lambda: bool(self._content.queued(self._columns)))),
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
