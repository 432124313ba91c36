"""One answer on its way to stdout, as it comes or rendered. Knows no session."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from kvchat.ui.clean import CleanStream, sanitize

if TYPE_CHECKING:
    from kvchat.ui.markdown import MarkdownBlocks


class AnswerPrinter:
    """Writes an answer as it comes and ends it with exactly one newline."""

    def __init__(self, out: CleanStream, *, muted: bool) -> None:
        self._out = out
        self._muted = muted
        self._held = ""
        self._begun = False

    def write(self, text: str) -> None:
        """Write what is new, but hold newlines back: they may be the answer's last."""
        text = self._held + text
        body = text.rstrip("\n")
        self._held = text[len(body) :]
        if body and not self._muted:
            self._out.write(body)
            self._out.flush()
            self._begun = True

    def end(self, *, complete: bool) -> None:
        """Close the line; an answer that failed before its first text has none."""
        if not self._muted and (complete or self._begun):
            self._out.write("\n")
            self._out.flush()


class MarkdownPrinter(AnswerPrinter):
    """Writes an answer rendered, each block as soon as it is finished."""

    def __init__(self, out: CleanStream, blocks: MarkdownBlocks) -> None:
        super().__init__(out, muted=False)
        self._blocks = blocks
        self._behind = ""

    def write(self, text: str) -> None:
        """Take what is new, write what is finished."""
        self._blocks.take(sanitize(text, behind=self._behind))
        self._behind = text[-1:] or self._behind
        self._print(whole=False)

    def end(self, *, complete: bool) -> None:
        """Write the rest."""
        self._print(whole=True)
        if complete and not self._begun:
            super().end(complete=True)

    def _print(self, *, whole: bool) -> None:
        lines = self._blocks.finished(shutil.get_terminal_size().columns, whole=whole)
        if lines:
            self._out.write_styled(lines + "\n")
            self._out.flush()
            self._begun = True
