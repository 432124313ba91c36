"""Records the README's picture from the real program: python -m tests.ui.record [FILE.svg].

Types a short dialogue with the embedded model behind a pseudo-terminal, and draws what the terminal shows as SVG.
"""

import sys
import tempfile
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from pyte.screens import Char

from tests.ui.terminal import Terminal

PICTURE = Path(__file__).with_name("session.svg")
DIALOGUE = (
    "What is the capital of France?",
    "And of Italy?",
    "Write a Python function that adds two numbers.",
    "/context",
)
COLUMNS, ROWS = 96, 60
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
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def recorded() -> list[list[Char]]:
    """The rows of the terminal at the dialogue's end, each a list of cells."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--temperature", "0", "--max-tokens", "120")
        size: dict[str, Any] = {"columns": COLUMNS, "rows": ROWS}
        terminal = Terminal(Path(folder), *flags, module="kvchat", own_models=False, **size).ready()
        terminal.until(lambda: "ready" in terminal.visible[-1], "the model")
        for message in DIALOGUE:
            terminal.enter(message)
            if message.startswith("/"):
                terminal.wait_for("free")
            else:
                terminal.settle()
        for _ in range(20):
            terminal.read()
        num_rows = len(terminal.visible)
        buffer = terminal.screen.buffer
        rows = [[buffer[y][x] for x in range(COLUMNS)] for y in range(num_rows)]
        terminal.leave()
    return rows


def svg(rows: list[list[Char]]) -> str:
    """The rows as a picture; runs of cells that look alike are one piece of text."""
    width, height = COLUMNS * CELL + 2 * MARGIN, len(rows) * LINE + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img"'
        ' aria-label="A session of kvchat in a terminal">',
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>',
        f'<g font-family="{FONT}" font-size="14" fill="{INK}" xml:space="preserve">',
    ]
    for y, row in enumerate(rows):
        start = 0
        for look, cells in groupby(row, key=lambda cell: (cell.fg, cell.bold, cell.italics, cell.underscore)):
            text = "".join(cell.data for cell in cells)
            if text.strip():
                lines.append(piece(text, look, MARGIN + start * CELL, MARGIN + (y + 0.75) * LINE))
            start += len(text)
    return "\n".join([*lines, "</g>", "</svg>", ""])


def piece(text: str, look: tuple[str, bool, bool, bool], x: float, y: float) -> str:
    """One run of cells."""
    colour, bold, italic, underlined = look
    style = f' fill="{COLOURS[colour]}"' if colour in COLOURS else ""
    style += ' font-weight="bold"' * bold + ' font-style="italic"' * italic
    style += ' text-decoration="underline"' * underlined
    stripped = text.lstrip()
    x += (len(text) - len(stripped)) * CELL
    stripped = stripped.rstrip()
    length = f' textLength="{len(stripped) * CELL:g}"'
    return f'<text x="{x:g}" y="{y:g}"{length}{style}>{escape(stripped)}</text>'


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    path.write_text(svg(recorded()), encoding="utf-8")
    print(path)
