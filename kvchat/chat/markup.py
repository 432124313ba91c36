"""The Markdown that answers are written in: which of it counts, and what stays text. Draws nothing."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

_MATHS = re.compile(r"\\\(.+?\\\)|\\\[.+?\\\]|\$\$.+?\$\$|\$(?![\s$])[^$\n]*?(?<![\s\\])\$(?!\d)", re.DOTALL)


def markdown_parser() -> MarkdownIt:
    """CommonMark with tables; what a reader would lose (HTML, link definitions) stays text."""
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 100}).enable(["strikethrough", "table"])
    parser.inline.ruler.before("escape", "maths", _maths)
    return parser.disable(["reference", "html_block", "html_inline"])


def _maths(state: StateInline, silent: bool) -> bool:
    """A formula between `\\(…\\)`, `\\[…\\]` or dollars is text as it is: its backslashes and stars are its own."""
    found = _MATHS.match(state.src, state.pos) if state.src[state.pos] in "\\$" else None
    if found is None:
        return False
    if not silent:
        state.pending += found[0]
    state.pos = found.end()
    return True
