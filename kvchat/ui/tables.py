"""Tables and bars as text for whoever reads it: so many columns, with colours or without, or as plain words. Uses rich."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from kvchat.ui.clean import sanitize
from kvchat.ui.figures import bar, parts

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement


_BAR_COLUMNS = 40


@dataclass(frozen=True, slots=True)
class Look:
    """How text is shown: `columns` wide, with SGR colours or none; `plain` also does without bars, for screen readers."""

    columns: int = 80
    color: bool = False
    plain: bool = False


class Styled(str):
    """Text that is safe to print as it is: its colours are ours, and what others wrote in it was cleaned."""

    __slots__ = ()


def joined(pieces: Iterable[str], columns: int = 0) -> Styled:
    """Several pieces below each other; those that are not styled are cleaned, and wrapped to `columns` unless 0."""
    return Styled("\n".join(line for piece in pieces if piece for line in _lines(piece, columns)))


def _lines(piece: str, columns: int) -> list[str]:
    if isinstance(piece, Styled):
        return [piece]
    lines = sanitize(piece).split("\n")
    return [part for line in lines for part in textwrap.wrap(line, columns)] if columns else lines


@dataclass(frozen=True, slots=True)
class Meter:
    """A bar that is as wide as its column allows."""

    share: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(bar(self.share, options.max_width), style="cyan", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return _measured()


@dataclass(frozen=True, slots=True)
class Segments:
    """A bar of several parts, each with a character of its own, so that it is read without colours too."""

    counts: tuple[int, ...]
    characters: str
    styles: tuple[str, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        cells = parts(self.counts, options.max_width)
        pieces = zip(self.characters, cells, self.styles, strict=True)
        yield Text.assemble(*((sign * count, style) for sign, count, style in pieces), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return _measured()


def _measured() -> Measurement:
    from rich.measure import Measurement

    return Measurement(4, _BAR_COLUMNS)


Cell = str | Meter | Segments


def table(
    rows: Sequence[Sequence[Cell]], look: Look, *, heading: Sequence[str] = (), left: Sequence[int] = (0,)
) -> Styled:
    """Rows in columns; those with an index in `left` and those of bars begin at the left, the others end at the right.

    Text that does not fit is cut; a plain look gives no bars and no alignment, but one row of words a line.
    """
    if look.plain:
        lines = [", ".join(cell for cell in row if isinstance(cell, str) and cell) for row in rows]
        return joined([", ".join(word for word in heading if word), *lines])
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1), expand=False)
    kinds = [
        any(not isinstance(row[index], str) for row in rows) for index in range(len(rows[0]) if rows else 0)
    ]
    for index, is_bar in enumerate(kinds):
        justify: Any = "left" if index in left or is_bar else "right"
        grid.add_column(justify=justify, no_wrap=not is_bar, overflow="ellipsis")  # bars shrink first
    if heading:
        grid.add_row(*(Text(word, style="bold") for word in heading))
    for row in rows:
        grid.add_row(
            *(Text(sanitize(cell).replace("\n", " ")) if isinstance(cell, str) else cell for cell in row)
        )
    file = StringIO()
    settings: dict[str, Any] = {"force_terminal": look.color, "legacy_windows": False}
    settings["color_system"] = "standard" if look.color else None
    Console(file=file, width=max(20, look.columns - 1), highlight=False, **settings).print(grid)
    return Styled("\n".join(line.rstrip() for line in file.getvalue().rstrip("\n").split("\n")))
