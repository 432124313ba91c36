"""One answer on its way to the screen: what is finished is handed out once, the rest is a live tail. Writes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from prompt_toolkit.utils import get_cwidth

from kvchat.backends.base import Prefilling, Text
from kvchat.ui.clean import sanitize
from kvchat.ui.render import dim, progress_row

THOUGHT_ROWS = 3
_TAB = "    "
_STEP = 2048  # where a line without end is cut, so that its rows stay where they are while it grows


class Blocks(Protocol):
    """A growing text, cut where nothing before can change any more."""

    @property
    def open(self) -> str:
        """What was not handed out yet, as it came."""

    def preview(self, columns: int) -> str:
        """How a table that is open looks by now; empty for everything else, which is shown as it came."""

    def take(self, text: str) -> None:
        """The text grew."""

    def finished(self, columns: int, *, whole: bool = False) -> str:
        """What is new and finished, as lines for a terminal; all the rest if the text is `whole`."""


class PlainBlocks:
    """Text as it is: a line is finished when the next one begins. The terminal wraps, so that it is copied whole."""

    def __init__(self) -> None:
        self.open = ""
        self._is_begun = False

    def preview(self, columns: int) -> str:
        """Plain text is shown as it came."""
        return ""

    def take(self, text: str) -> None:
        """The text grew."""
        self.open += text

    def finished(self, columns: int, *, whole: bool = False) -> str:
        """Whole lines up to the last that is not empty: the answer may end in empty lines."""
        text = self.open if whole else self.open[: self.open.rfind("\n") + 1]
        lines = text.rstrip("\n")
        self.open = "" if whole else self.open[len(lines) + 1 :] if lines else self.open
        if not self._is_begun:
            lines = lines.lstrip("\n")
        self._is_begun = self._is_begun or bool(lines)
        return lines


@dataclass(frozen=True, slots=True)
class Tail:
    """The rows that are live now: of the answer, of the reasoning (`thought`) or of what is waited for."""

    rows: list[str]
    kind: str = "tail"


class AnswerView:
    """Takes an answer's events; gives finished text to print above, and its live tail.

    With `show_thought` False, reasoning is not shown while it comes, only that there was some.
    """

    def __init__(self, blocks: Blocks, *, show_thought: bool = True) -> None:
        self._blocks = blocks
        self._show_thought = show_thought
        self._is_begun = False
        self._behind = {True: "", False: ""}  # the last character of the reasoning, and of the answer
        self._thought: list[str] = []
        self._thought_since: float | None = None
        self._prefill: tuple[Prefilling, float, float] | None = None
        self._num_texts = 0
        self._since = 0.0
        self._num_printed = 0  # times that something was handed out
        self._tail: tuple[object, Tail] = (None, Tail([]))  # as it was drawn last, and for what

    @property
    def thought(self) -> str:
        """The reasoning so far, as it came."""
        return "".join(self._thought)

    @property
    def progress(self) -> list[str]:
        """`57 tok`, `21.3/s`, `3 s`: how far it is since its first text; empty before."""
        if not self._num_texts:
            return []
        spent = time.monotonic() - self._since
        rate = [f"{(self._num_texts - 1) / spent:.1f}/s"] if spent > 0.5 else []
        return [f"{self._num_texts} tok", *rate, f"{spent:.0f} s"]

    def take(self, event: Prefilling | Text) -> None:
        """Note what is new."""
        now = time.monotonic()
        if isinstance(event, Text):
            self._since = self._since or now
            self._num_texts += 1
        if isinstance(event, Prefilling):
            since = now if self._prefill is None or event.done == 0 else self._prefill[1]
            self._prefill = (event, since, now)
        elif event.reasoning:
            self._thought_since = self._thought_since or now
            self._thought.append(self._cleaned(event))
        else:
            self._is_begun = True
            self._blocks.take(self._cleaned(event))

    def _cleaned(self, event: Text) -> str:
        behind = self._behind[event.reasoning]
        self._behind[event.reasoning] = event.text[-1:] or behind
        return sanitize(event.text, behind=behind)

    def finished(self, columns: int, *, whole: bool = False) -> str:
        """What may be printed now and has not been handed out before; `whole` at the answer's end."""
        printed = []
        if self._thought_since is not None and (self._is_begun or whole):
            spent = time.monotonic() - self._thought_since
            printed.append(dim(f"thought {spent:.1f} s, {len(self._thought)} tokens"))
            self._thought_since = None
        printed.append(self._blocks.finished(columns, whole=whole))
        self._num_printed += 1
        return "\n".join(piece for piece in printed if piece)

    def tail(self, columns: int, num_rows: int) -> Tail:
        """The rows that are live now, cut to the screen's width; of the answer, the last `num_rows`."""
        if self._is_begun:
            place = self._num_texts, self._num_printed, columns, num_rows
            if self._tail[0] != place:  # it is asked for several times a frame
                self._tail = place, Tail(self._open_rows(columns, num_rows))
            return self._tail[1]
        if self._thought:
            text = self.thought.rstrip("\n") if self._show_thought else "thinking…"
            return Tail(last_rows(text, columns, THOUGHT_ROWS), "thought")
        if self._prefill is not None:
            event, since, now = self._prefill
            return Tail([progress_row("prefill", event.done, event.total, now - since, columns)], "wait")
        return Tail([])

    def _open_rows(self, columns: int, num_rows: int) -> list[str]:
        """What can still change, as far as it has come."""
        if preview := self._blocks.preview(columns):
            return preview.split("\n")[-num_rows:]
        text = self._blocks.open.rstrip("\n")
        return last_rows(text, columns, num_rows) if text else []


def last_rows(text: str, columns: int, num_rows: int) -> list[str]:
    """The last rows of a text that is wrapped at a width, in cells, between words where there are any."""
    columns = max(2, columns)
    enough = max(0, len(text) - 2 * columns * num_rows)
    start = max(text.rfind("\n", 0, enough) + 1, enough // _STEP * _STEP)
    rows = [row for line in text[start:].split("\n") for row in wrapped(line.replace("\t", _TAB), columns)]
    return rows[-num_rows:]


def wrapped(line: str, columns: int) -> list[str]:
    """The rows of a line at a width, in cells, broken between words where there are any."""
    rows: list[str] = []
    row, width = "", 0
    for char in line:
        cells = 1 if " " <= char <= "~" else get_cwidth(char)
        if width + cells > columns:
            whole, blank, word = row.rpartition(" ")
            if not blank or char == " " or _width(word) + cells > columns:
                whole, word = row, ""
            rows.append(whole)
            row, width = word, _width(word)
            if char == " " and not word:
                continue
        row, width = row + char, width + cells
    return [*rows, row]


def _width(word: str) -> int:
    return len(word) if word.isascii() and word.isprintable() else get_cwidth(word)
