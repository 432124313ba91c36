"""What a terminal shows, as SVG: one picture, or a film of its rows. Records nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby

from pyte.screens import Char

Row = tuple[Char, ...]
CELL, LINE, MARGIN = 8.4, 19, 16
INK, PAPER = "#d8dee9", "#20242c"
COLOURS = {
    "black": "#4c566a",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": INK,
}
COLOURS |= {f"bright{name}": paint for name, paint in COLOURS.items()} | {"brightbrown": "#e5c07b"}
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
REST_S = 3.0
"""How long a film shows its end before it begins again."""


def picture(rows: Sequence[Row], title: str) -> str:
    """The rows as they are."""
    drawn = (piece for y, row in enumerate(rows) for piece in pieces(row, y))
    return framed(drawn, len(rows[0]), len(rows), title)


def film(frames: Sequence[tuple[float, Sequence[Row]]], title: str) -> str:
    """Frames, each with the second that it begins at, as one animation: every row is drawn once for each time that it
    looks so, and shown for as long."""
    length = frames[-1][0] + REST_S
    num_rows, columns = len(frames[0][1]), len(frames[0][1][0])
    drawn = [
        f'<rect width="0" height="0"><animate id="film" attributeName="x" dur="{length:.2f}s" begin="0s;film.end"/></rect>'
    ]
    for y in range(num_rows):
        for look, shown in groupby(frames, key=lambda frame: frame[1][y]):
            start = next(iter(shown))[0]
            if not (text := "".join(pieces(look, y))):
                continue
            end = next((at for at, rows in frames if at > start and rows[y] != look), length)
            drawn.append(
                f'<g visibility="hidden">{text}<set attributeName="visibility" to="visible" begin="film.begin+{start:.2f}s"'
                f' dur="{end - start:.2f}s"/></g>'
            )
    return framed(drawn, columns, num_rows, title)


def framed(drawn: Iterable[str], columns: int, num_rows: int, title: str) -> str:
    """Pieces on paper."""
    width, height = columns * CELL + 2 * MARGIN, num_rows * LINE + 2 * MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img"'
        f' aria-label="{escape(title)}">',
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>',
        f'<g font-family="{FONT}" font-size="14" fill="{INK}" xml:space="preserve">',
    )
    return "\n".join([*head, *drawn, "</g>", "</svg>", ""])


def pieces(row: Row, y: int) -> Iterator[str]:
    """The texts of one row; runs of cells that look alike are one."""
    start = 0
    for look, cells in groupby(row, key=lambda cell: (cell.fg, cell.bold, cell.italics, cell.underscore)):
        text = "".join(cell.data for cell in cells)
        if text.strip():
            yield piece(text, look, MARGIN + start * CELL, MARGIN + (y + 0.75) * LINE)
        start += len(text)


def piece(text: str, look: tuple[str, bool, bool, bool], x: float, y: float) -> str:
    """One run of cells."""
    colour, bold, italic, underlined = look
    paint = COLOURS.get(colour) or (f"#{colour}" if len(colour) == 6 and colour.isalnum() else "")
    style = f' fill="{paint}"' if paint and colour != "default" else ""
    style += ' font-weight="bold"' * bold + ' font-style="italic"' * italic
    style += ' text-decoration="underline"' * underlined
    stripped = text.lstrip()
    x += (len(text) - len(stripped)) * CELL
    stripped = stripped.rstrip()
    length = f' textLength="{len(stripped) * CELL:g}"'
    return f'<text x="{x:g}" y="{y:g}"{length}{style}>{escape(stripped)}</text>'
