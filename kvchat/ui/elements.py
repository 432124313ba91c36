"""How each kind of Markdown block is drawn, so that its text can be copied and none is lost. Uses rich."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore, inline, text_join
from markdown_it.token import Token
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, TableElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

INDENT = "\ue000"
"""Stands for a blank at the beginning of a line, which Markdown would drop; whoever draws puts the blank back."""

_LEAST_COLUMN = 4
_CODE_INDENT = "    "
_LEADING_BLANKS = re.compile(r"(?<=\n) {2,}")


def highlighted(code: str, language: str) -> Text:
    """Code in the terminal's own sixteen colours, without padding, background or wrapping."""
    text = Syntax("", language, theme="ansi_dark", background_color="default").highlight(code)
    text.rstrip()
    text.no_wrap, text.overflow = True, "ignore"
    return text


class _Code(CodeBlock):
    """Code as it is; only inside a list or a quotation, where rich would cut it, it is folded."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = highlighted(self._shown(str(self.text).rstrip("\n")), self.lexer_name)
        if options.max_width < console.width:
            code.no_wrap, code.overflow = False, "fold"
        yield code

    def _shown(self, code: str) -> str:
        return code


class _IndentedCode(_Code):
    """Code that has no fence but its indentation, which it keeps: it may belong to the lines before it."""

    def _shown(self, code: str) -> str:
        return textwrap.indent(code, _CODE_INDENT)


class _Heading(Heading):
    """A bold line, at the left like everything else."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.assemble(self.text, style="bold underline" if self.tag == "h1" else "bold")


class _Item(ListItem):
    """An item whose number takes the same room whatever follows, so that it can be drawn before the list's end."""

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        """Lines of the item behind `number`."""
        label = f"{number}. ".rjust(4)
        room = options.update(width=max(1, options.max_width - len(label)))
        style = console.get_style("markdown.item.number", default="none")
        for index, line in enumerate(console.render_lines(self.elements, room, style=self.style)):
            yield Segment(" " * len(label) if index else label, style)
            yield from line
            yield Segment.line()


class _Table(TableElement):
    """A table whose cells are folded, never cut; where even that has no room, its rows as lines."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        header = self.header.row.cells if self.header and self.header.row else []
        rows = [row.cells for row in self.body.rows] if self.body else []
        if len(header) * _LEAST_COLUMN > options.max_width:
            for cells in (header, *rows):
                yield Text(" | ").join(cell.content for cell in cells)
            return
        table = Table(box=box.SIMPLE, pad_edge=False, style="markdown.table.border", collapse_padding=True)
        for cell in header:
            heading = cell.content.copy()
            heading.stylize("markdown.table.header")
            table.add_column(heading, overflow="fold")
        for cells in rows:
            table.add_row(*(cell.content for cell in cells))
        yield table


class ChatMarkdown(Markdown):
    """Parsed blocks to be drawn. A line break that was written is a line break."""

    elements = Markdown.elements | {
        "fence": _Code,
        "code_block": _IndentedCode,
        "heading_open": _Heading,
        "list_item_open": _Item,
        "table_open": _Table,
    }

    def __init__(self, parser: MarkdownIt, blocks: Sequence[Token]) -> None:
        super().__init__("", hyperlinks=False)
        state = StateCore("", parser, {}, [_indented(token) for token in blocks])
        inline(state)
        text_join(state)
        for token in state.tokens:
            token.children = [_as_text(child) for child in token.children] if token.children else None
        self.parsed = state.tokens


def _indented(token: Token) -> Token:
    """A paragraph whose further lines keep their indentation: it may be code without a fence."""
    if token.type != "inline" or token.level != 1 or "\n  " not in token.content:
        return token
    return token.copy(content=_LEADING_BLANKS.sub(lambda found: INDENT * len(found[0]), token.content))


def _as_text(token: Token) -> Token:
    """Images as words, where they stand; soft line breaks as line breaks."""
    if token.type == "softbreak":
        token.type = "hardbreak"
    if token.type == "image":
        words: dict[str, Any] = {"content": f"![{token.content}]({token.attrs.get('src', '')})"}
        return Token("text", "", 0, level=token.level, **words)
    return token
