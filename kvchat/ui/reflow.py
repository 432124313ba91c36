"""What becomes of the live part in a terminal that rewraps its rows when it gets narrower. Writes nothing.

The rules are tmux's: a row goes as far as it was ever written since it was erased, blanks at its end included; each is
rewrapped on its own; the cursor stays at its cell, and behind the last one it goes to the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from prompt_toolkit.data_structures import Point
from prompt_toolkit.layout.screen import Screen
from prompt_toolkit.renderer import Renderer


class Footprint:
    """The cells that the live part has taken in the terminal, row by row."""

    def __init__(self) -> None:
        self._rows: list[list[int]] = []  # the widths of each row's characters, in cells

    def clear(self) -> None:
        """All of it was erased."""
        self._rows = []

    def grow(self, renderer: Renderer) -> None:
        """It was drawn: over what it took before, where it did not become lower."""
        screen = renderer.last_rendered_screen
        if screen is None:
            return
        before = [sum(row) for row in self._rows] + [0] * screen.height
        rows = (_widths(screen, y) for y in range(screen.height))
        self._rows = [row + [1] * (taken - sum(row)) for row, taken in zip(rows, before, strict=False)]

    def rows_above(self, cursor: Point, columns: int) -> int:
        """How many rows lie above the cursor's once all are rewrapped at `columns`."""
        above = sum(num_rows(row, columns) for row in self._rows[: cursor.y])
        own = self._rows[cursor.y] if cursor.y < len(self._rows) else []
        return above + num_rows(_before(own, cursor.x), columns) - 1


def num_rows(widths: Sequence[int], columns: int) -> int:
    """How many rows characters of these widths, in cells, take at `columns`; one at least."""
    rows, used = 1, 0
    for width in widths:
        if used + width > columns:
            rows, used = rows + 1, 0
        used += width
    return rows


def _before(widths: Sequence[int], x: int) -> Sequence[int]:
    """The characters up to the one at cell `x`; all where there is none."""
    end = 0
    for count, width in enumerate(widths, 1):
        end += width
        if end > x:
            return widths[:count]
    return widths


def _widths(screen: Screen, y: int) -> list[int]:
    """The widths of a row's characters up to the last that is written: blanks at its end are not."""
    row = screen.data_buffer[y]
    end = max((x for x, char in row.items() if char.char != " "), default=-1)
    widths, x = [], 0
    while x <= end:
        widths.append(max(1, row[x].width) if x in row else 1)
        x += widths[-1]
    return widths
