"""The input's way in and its looks: keys and pastes within a bound, and lines of any length. Knows no key's meaning."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from prompt_toolkit.formatted_text.utils import fragment_list_to_text
from prompt_toolkit.input.base import Input
from prompt_toolkit.input.defaults import create_input
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput

from kvchat.ui.clean import marked

MAX_CHARACTERS = 4 * 2**20
"""Longest message; no context holds so much."""

_READ_CHARACTERS = 1 << 16
_AROUND = 1500  # characters of a long line that are shown on each side of the cursor, at least
_PASTE_END = "\x1b[201~"


def terminal_input(on_large_paste: Callable[[], None]) -> Input:
    """stdin as a terminal; `on_large_paste` is called for a paste that is too long, of which nothing is taken."""
    if not sys.stdin.isatty():
        return create_input()
    return _TerminalInput(sys.stdin, on_large_paste)


class _TerminalInput(Vt100Input):
    """Reads all that is there at once, up to a bound, for a paste comes in thousands of small pieces."""

    def __init__(self, stdin: TextIO, on_large_paste: Callable[[], None]) -> None:
        super().__init__(stdin)
        self.vt100_parser = _Parser(lambda key: self._buffer.append(key), on_large_paste)

    def read_keys(self) -> list[KeyPress]:
        """The keys that were pressed."""
        num_read = 0
        while num_read < _READ_CHARACTERS and (data := self.stdin_reader.read(4096)):
            self.vt100_parser.feed(data)
            num_read += len(data)
        keys, self._buffer = self._buffer, []
        return keys


class _Parser(Vt100Parser):
    """Collects a paste piece by piece, and lets go of one that is too long."""

    def __init__(self, take: Callable[[KeyPress], None], on_large_paste: Callable[[], None]) -> None:
        self._on_large_paste = on_large_paste
        self._pieces: list[str] = []
        self._held = ""  # of what came, what may be the beginning of the mark
        self._length = 0
        super().__init__(take)

    def feed(self, data: str) -> None:
        """What was read."""
        if not self._in_bracketed_paste:
            super().feed(data)
            return
        held = self._held + data  # the mark at its end may come in two pieces
        end = held.find(_PASTE_END)
        whole = end if end >= 0 else max(0, len(held) - len(_PASTE_END) + 1)
        self._keep(held[:whole])
        self._held = held[whole:]
        if end >= 0:
            self._end_paste()

    def _keep(self, text: str) -> None:
        is_news = self._length <= MAX_CHARACTERS < self._length + len(text)
        self._length += len(text)
        self._pieces.append(text)
        if self._length > MAX_CHARACTERS:
            self._pieces.clear()
        if is_news:
            self._on_large_paste()

    def _end_paste(self) -> None:
        pasted, rest = "".join(self._pieces), self._held.removeprefix(_PASTE_END)
        self._in_bracketed_paste = False
        self._pieces, self._held, self._length = [], "", 0
        self.feed_key_callback(KeyPress(Keys.BracketedPaste, pasted))
        self.feed(rest)


class AroundCursor(Processor):
    """Shows of a long line what is around the cursor, and marks where a character would hide or give orders."""

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """One line as it is drawn."""
        given, document = transformation_input, transformation_input.document
        text = fragment_list_to_text(given.fragments)
        if len(text) <= 4 * _AROUND:
            shown = marked(text)
            return Transformation(given.fragments if shown == text else [("", shown)])
        at = document.cursor_position_col if given.lineno == document.cursor_position_row else 0
        start = max(0, at // _AROUND - 1) * _AROUND
        end = start + 3 * _AROUND
        head, tail = "…" if start else "", "…" if end < len(text) else ""
        shift, last = len(head) - start, len(head) + min(end, len(text)) - start
        return Transformation(
            [("", head + marked(text[start:end]) + tail)],
            source_to_display=lambda place: min(max(0, place + shift), last),
            display_to_source=lambda place: min(max(0, place - shift), len(text)),
        )
