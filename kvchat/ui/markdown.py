"""Markdown as the terminal shows it: where a block ends, and a finished block as text with colours. Uses rich."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown
from rich.syntax import Syntax
from rich.text import Text

_SGR = re.compile(r"\x1b\[[0-9;]*m")
_TRAILING_BLANKS = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)


def _parser() -> MarkdownIt:
    """CommonMark with tables; what a reader would lose (HTML, link definitions) stays text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    return parser.disable(["reference", "html_block", "html_inline"])


class _PlainCode(CodeBlock):
    """Highlighted code without padding, background or wrapping, so that what is copied is the code."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        syntax = Syntax("", self.lexer_name, theme="ansi_dark", background_color="default")
        code = syntax.highlight(str(self.text).rstrip("\n"))
        code.rstrip()
        code.no_wrap, code.overflow = True, "ignore"
        yield code


class _PlainHeading(Heading):
    """A bold line, at the left like everything else."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.assemble(self.text, style="bold underline" if self.tag == "h1" else "bold")


class _ChatMarkdown(Markdown):
    """Markdown in which a line break that was written is a line break."""

    elements = Markdown.elements | {
        "fence": _PlainCode,
        "code_block": _PlainCode,
        "heading_open": _PlainHeading,
    }

    def __init__(self, markup: str) -> None:
        super().__init__(markup, hyperlinks=False)
        self.parsed = _parser().parse(markup)
        for token in self.parsed:
            for child in token.children or ():
                child.type = "hardbreak" if child.type == "softbreak" else child.type


class MarkdownBlocks:
    """Cuts a growing text into finished top-level blocks and renders them."""

    def __init__(self, *, color: bool) -> None:
        self._parser = _parser()
        self._color = color

    def split(self, text: str) -> tuple[str, str]:
        """The blocks that can't change any more, and the rest: the last block is open until another begins.

        Only whole lines count: half of a line may look like another kind of block.
        """
        blocks = self._top_level(text[: text.rfind("\n") + 1])
        finished = "".join(blocks[:-1])
        return finished, text[len(finished) :]

    def render(self, blocks: str, columns: int) -> str:
        """Finished blocks as lines with SGR colours, a blank line between two; no line has blanks at its end."""
        return "\n\n".join(self._render(block, columns) for block in self._top_level(blocks))

    def _top_level(self, text: str) -> list[str]:
        """The source of each top-level block."""
        starts = [token.map[0] for token in self._parser.parse(text) if _is_top_level(token) and token.map]
        lines = text.splitlines(keepends=True)
        ends = [*starts[1:], len(lines)]
        return ["".join(lines[start:end]) for start, end in zip([0, *starts[1:]], ends, strict=False)]

    def _render(self, block: str, columns: int) -> str:
        file = StringIO()
        settings: dict[str, Any] = {
            "force_terminal": True,
            "no_color": not self._color,
            "legacy_windows": False,
        }
        console = Console(file=file, width=columns, highlight=False, **settings)
        console.print(_ChatMarkdown(block), crop=False, end="")
        lines = _TRAILING_BLANKS.sub(r"\1", file.getvalue()).split("\n")
        while lines and not _SGR.sub("", lines[-1]):
            lines.pop()
        while lines and not _SGR.sub("", lines[0]):
            lines.pop(0)
        return "\n".join(lines)


def _is_top_level(token: Token) -> bool:
    return token.level == 0 and token.nesting >= 0
