"""Markdown that grows: what can't change any more is handed out once, as text with colours. Writes nothing.

The smallest thing handed out is a part: a top-level block, an item of a list, a few lines of code. How a part looks
depends on what stands before it alone, so the sum is the same however the text came.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from typing import Any

from markdown_it.token import Token
from rich.console import Console
from rich.text import Text

from kvchat.chat.markup import markdown_parser
from kvchat.ui.elements import INDENT, ChatMarkdown, highlighted

CODE_LINES = 4
"""Lines of code that are handed out together."""

_CODE_CONTEXT = 200
_LEAST_COLUMNS = 12
_SGR = re.compile(r"\x1b\[[0-9;]*m")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_TRAILING_BLANKS = re.compile(r"[ \t]+((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Block:
    """A top-level block: its tokens, the lines of its source, and the line of the text that it begins at."""

    tokens: list[Token]
    lines: list[str]
    line: int

    def source(self, token: Token) -> str:
        """The lines that a token was made of."""
        first, last = token.map or [self.line, self.line + len(self.lines)]
        return "".join(self.lines[first - self.line : last - self.line]).strip("\n")


@dataclass(frozen=True, slots=True)
class _Part:
    """Code to print or tokens to draw, the source of both, and the line of the block that begins behind it."""

    what: Text | Sequence[Token]
    source: str
    next_line: int


class MarkdownBlocks:
    """One growing answer. `color`: with colours; `styled`: with bold and the like, or else bare text."""

    def __init__(self, *, color: bool, styled: bool = True) -> None:
        self._parser = markdown_parser()
        self._outline = markdown_parser()
        self._outline.core.ruler.enableOnly(["normalize", "block"])
        self._color = color
        self._styled = styled
        self._source = ""  # from the beginning of the open block on
        self._num_lines = 0  # complete lines in it when it was last looked at
        self._num_given = 0  # parts of the open block that were handed out
        self._next_line = 0  # of the open block, behind them
        self._is_begun = False
        self._is_block_begun = False
        self._table: _Part | None = None  # that is open, as far as its last whole row
        self._preview: tuple[_Part | None, int, str] = (None, 0, "")  # how that looked last, and how wide

    def take(self, text: str) -> None:
        """The answer grew."""
        self._source += text

    @property
    def open(self) -> str:
        """What was not handed out yet, as it came."""
        return self._source.split("\n", self._next_line)[-1]

    def preview(self, columns: int) -> str:
        """How a table that is open looks by its last whole row, without colours; empty for everything else."""
        if self._table is None:
            return ""
        if self._preview[:2] != (self._table, columns):
            drawn = self._drawn(self._table, max(columns, _LEAST_COLUMNS))
            self._preview = self._table, columns, _SGR.sub("", drawn)
        return self._preview[2]

    def finished(self, columns: int, *, whole: bool = False) -> str:
        """What can't change any more and was not handed out before; all the rest if the text is `whole`.

        Only whole lines count: half of a line may look like another kind of block.
        """
        text = self._source if whole else self._source[: self._source.rfind("\n") + 1]
        if text.count("\n") == self._num_lines and not whole:
            return ""
        blocks = self._blocks(text)
        printed: list[str] = []
        for number, block in enumerate(blocks, 1):
            is_open = number == len(blocks) and not whole
            printed += self._given(_parts(block, is_open=is_open, skip=self._num_given), columns)
            if not is_open:
                self._source = self._source[sum(map(len, block.lines)) :]
                self._num_given, self._next_line, self._is_block_begun = 0, 0, False
        self._num_lines = self._source.count("\n")
        self._table = _open_table(blocks) if not whole else None
        return "\n".join(printed)

    def _given(self, parts: Iterator[_Part], columns: int) -> Iterator[str]:
        """Parts as lines for the terminal, a blank line ahead of a new block."""
        for part in parts:
            self._num_given += 1
            self._next_line = part.next_line
            drawn = self._drawn(part, max(columns, _LEAST_COLUMNS))
            if drawn:
                yield ("\n" if self._is_begun and not self._is_block_begun else "") + drawn
                self._is_begun = self._is_block_begun = True

    def _blocks(self, text: str) -> list[_Block]:
        """The top-level blocks of a text; together their lines are all of its lines."""
        tokens = self._outline.parse(text)
        firsts = [i for i, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0]
        lines = _LINE.findall(text)
        starts = [0, *((tokens[first].map or [0])[0] for first in firsts[1:])]
        if not firsts:
            return []
        return [
            _Block(tokens[first:after], lines[start:end], start)
            for (first, after), (start, end) in zip(
                pairwise([*firsts, len(tokens)]), pairwise([*starts, len(lines)]), strict=True
            )
        ]

    def _drawn(self, part: _Part, columns: int) -> str:
        """A part as lines with SGR colours; no line has blanks at its end."""
        file = StringIO()
        settings: dict[str, Any] = {"force_terminal": True, "legacy_windows": False, "highlight": False}
        console = Console(file=file, width=columns, no_color=not self._color, **settings)
        if isinstance(part.what, Text):
            console.print(part.what, crop=False, soft_wrap=True, end="")
            return self._plain(file.getvalue())
        if 2 * max(token.level for token in part.what) > columns - _LEAST_COLUMNS:
            return part.source  # too deep to be drawn on so narrow a screen
        console.print(ChatMarkdown(self._parser, part.what), crop=False, end="")
        lines = self._plain(file.getvalue().replace(INDENT, " ")).split("\n")
        shown = [number for number, line in enumerate(lines) if _SGR.sub("", line)]
        return "\n".join(lines[shown[0] : shown[-1] + 1]) if shown else ""

    def _plain(self, text: str) -> str:
        text = _TRAILING_BLANKS.sub(r"\1", text)
        return text if self._styled else _SGR.sub("", text)


def _open_table(blocks: Sequence[_Block]) -> _Part | None:
    """The table that a text ends with."""
    if not blocks or blocks[-1].tokens[0].type != "table_open":
        return None
    return _Part(blocks[-1].tokens, "".join(blocks[-1].lines), 0)


def _parts(block: _Block, *, is_open: bool, skip: int) -> Iterator[_Part]:
    """The finished parts of a block, but for the first `skip`."""
    kind = block.tokens[0].type
    if kind == "fence":
        yield from _code_parts(block, is_open=is_open, skip=skip)
    elif kind in ("bullet_list_open", "ordered_list_open"):
        yield from _items(block, is_open=is_open, skip=skip)
    elif not is_open and not skip:
        yield _Part(block.tokens, "".join(block.lines).strip("\n"), len(block.lines))


def _items(block: _Block, *, is_open: bool, skip: int) -> Iterator[_Part]:
    """A list's items, each as a list of its own that begins with its number."""
    head, *inner, close = block.tokens
    starts = [i for i, token in enumerate(inner) if token.type == "list_item_open" and token.level == 1]
    for number, (start, end) in enumerate(pairwise([*starts, len(inner)])):
        is_last = end == len(inner)
        if number < skip or (is_last and is_open):
            continue
        attrs = {**head.attrs, "start": int(head.attrs.get("start", 1)) + number}
        tokens = [head.copy(attrs=attrs), *inner[start:end], close]
        last_line = len(block.lines) + block.line if is_last else (inner[end].map or [0])[0]
        yield _Part(tokens, block.source(inner[start]), last_line - block.line)


def _code_parts(block: _Block, *, is_open: bool, skip: int) -> Iterator[_Part]:
    """Code in steps of CODE_LINES, each highlighted with what stands before it."""
    fence = block.tokens[0]
    first, last = fence.map or [0, 0]
    code = fence.content.split("\n")[:-1]
    is_open = is_open and last - first < len(code) + 2
    num_shown = max((number for number, line in enumerate(code, 1) if line.strip()), default=0)
    blank = next((number for number, line in enumerate(code) if line.strip()), 0)
    for number, start in enumerate(range(blank, num_shown, CODE_LINES)):
        end = start + CODE_LINES
        if number < skip or (is_open and end >= num_shown):
            continue
        context = max(blank, start - _CODE_CONTEXT)
        text = highlighted("\n".join(code[context : min(end, num_shown)]), fence.info.split(" ")[0] or "text")
        lines = text.split("\n", allow_blank=True)[start - context : min(end, num_shown) - context]
        yield _Part(Text("\n").join(lines), "", first - block.line + 1 + min(end, len(code)))
