"""One answer on its way to the screen: what is finished is handed out once, the rest is a live tail. Writes nothing."""

from __future__ import annotations

import time
from typing import Protocol

from prompt_toolkit.utils import get_cwidth

from kvchat.backends.base import Prefilling, Text
from kvchat.ui.render import dim, sanitize

TAIL_ROWS = 6
THOUGHT_ROWS = 3
_TAB = "    "


class Blocks(Protocol):
    """Cuts a growing text where nothing before can change any more, and renders what is finished."""

    def split(self, text: str) -> tuple[str, str]:
        """What is finished, and the rest."""

    def render(self, blocks: str, columns: int) -> str:
        """What is finished, as lines for a terminal that many columns wide."""


class PlainBlocks:
    """Text as it is: a line is finished when the next one begins."""

    def split(self, text: str) -> tuple[str, str]:
        """Whole lines up to the last that is not empty, and the rest: the answer may end in empty lines."""
        whole = text[: text.rfind("\n") + 1].rstrip("\n")
        cut = len(whole) + 1 if whole else 0
        return text[:cut], text[cut:]

    def render(self, blocks: str, columns: int) -> str:
        """The lines; the terminal wraps them, so that they are copied whole."""
        return blocks.removesuffix("\n")


class AnswerView:
    """Takes an answer's events; gives finished text to print above and the rows of its live tail.

    `gap` is what stands between two finished pieces: a blank line between rendered blocks, nothing between lines.
    """

    def __init__(self, blocks: Blocks, *, gap: str = "") -> None:
        self._blocks = blocks
        self._gap = gap
        self._begun = False
        self._open = ""
        self._thought = ""
        self._thought_since: float | None = None
        self._prefill: tuple[Prefilling, float, float] | None = None

    def take(self, event: Prefilling | Text) -> None:
        """Note what is new."""
        now = time.monotonic()
        if isinstance(event, Prefilling):
            since = now if self._prefill is None or event.done == 0 else self._prefill[1]
            self._prefill = (event, since, now)
        elif event.reasoning:
            self._thought_since = self._thought_since or now
            self._thought += sanitize(event.text)
        else:
            self._open += sanitize(event.text)

    def finished(self, columns: int, *, whole: bool = False) -> str:
        """What may be printed now and has not been handed out before; `whole` at the answer's end."""
        printed = []
        if self._thought_since is not None and (self._open or whole):
            spent = time.monotonic() - self._thought_since
            printed.append(dim(f"thought {spent:.1f} s"))
            self._thought, self._thought_since = "", None
        blocks, self._open = (self._open.rstrip("\n"), "") if whole else self._blocks.split(self._open)
        if not self._begun:
            blocks = blocks.lstrip("\n")
        if blocks:
            printed.append((self._gap if self._begun else "") + self._blocks.render(blocks, columns))
            self._begun = True
        return "\n".join(printed)

    def tail(self, columns: int) -> list[str]:
        """The rows that are live now, cut to the screen's width."""
        if self._open:
            return last_rows(self._open.rstrip("\n"), columns, TAIL_ROWS)
        if self._thought:
            return last_rows(self._thought.rstrip("\n"), columns, THOUGHT_ROWS)
        if self._prefill is not None and not self._begun:
            return [_prefill_row(*self._prefill)[: max(1, columns - 1)]]
        return []


def _prefill_row(event: Prefilling, since: float, now: float) -> str:
    """`prefill ████░░░░ 512/1800 · 830 tok/s · 1.6 s left`."""
    share = event.done / event.total if event.total else 1.0
    filled = round(12 * share)
    row = f"prefill {'█' * filled}{'░' * (12 - filled)} {event.done}/{event.total}"
    if event.done and now > since:
        rate = event.done / (now - since)
        row += f" · {rate:.0f} tok/s · {(event.total - event.done) / rate:.1f} s left"
    return row


def last_rows(text: str, columns: int, num_rows: int) -> list[str]:
    """The last rows of a text that is hard-wrapped at a width, in cells."""
    columns = max(2, columns)
    rows: list[str] = []
    for line in text[-4 * columns * num_rows :].split("\n"):
        row, width = "", 0
        for char in line.replace("\t", _TAB):
            cells = get_cwidth(char)
            if width + cells > columns:
                rows.append(row)
                row, width = "", 0
            row, width = row + char, width + cells
        rows.append(row)
    return rows[-num_rows:]
