"""The answer that is being made, on the screen: drawn at most once a frame, its finished part printed above for good."""

from __future__ import annotations

import asyncio

from kvchat.backends.base import Prefilling, Text
from kvchat.config import UiConfig
from kvchat.ui.answer import AnswerView, PlainBlocks, Tail
from kvchat.ui.screen import Screen

FRAME_S = 0.05
"""Time between two redraws that an answer causes."""


class LiveAnswer:
    """Shows one answer after the other. Lives in the event loop's thread."""

    def __init__(self, screen: Screen, config: UiConfig, *, color: bool) -> None:
        self._screen = screen
        self._config = config
        self._color = color
        self._view: AnswerView | None = None
        self._frame_due = False

    @property
    def thought(self) -> str:
        """What the model thinks now; empty while none is made."""
        return self._view.thought if self._view else ""

    def load(self) -> None:
        """Bring in what rendering needs; may be called from any thread."""
        self._new_view()

    def begin(self) -> None:
        """A message is sent now."""
        self._view = self._new_view()

    def take(self, event: Prefilling | Text) -> None:
        """Note what is new, and draw it at most once in FRAME_S."""
        if self._view is None:
            return
        self._view.take(event)
        if not self._frame_due:
            self._frame_due = True
            asyncio.get_running_loop().call_later(FRAME_S, self._frame)

    def end(self, then: str = "") -> None:
        """Print what is left of it, and `then` after it."""
        rest = self._view.finished(self._screen.columns, whole=True) if self._view else ""
        self._view = None
        lines = [line for line in (rest, then) if line]
        if lines:
            self._screen.print_above("\n".join(lines))

    def drop(self) -> None:
        """Show no more of it; what `end` has not printed is lost."""
        self._view = None

    @property
    def is_begun(self) -> bool:
        """Whether some of an answer is on the screen and more may come."""
        return bool(self.progress)

    @property
    def progress(self) -> list[str]:
        """How many tokens came, how fast and in what time; empty while there are none."""
        return self._view.progress if self._view else []

    def tail(self, columns: int, num_rows: int) -> Tail | None:
        """The rows that are live now, `num_rows` at most; None while no answer is made."""
        return self._view.tail(columns, num_rows) if self._view else None

    def _frame(self) -> None:
        """Print what became finished and draw the rest."""
        self._frame_due = False
        finished = self._view.finished(self._screen.columns) if self._view else ""
        if finished:
            self._screen.print_above(finished)
        else:
            self._screen.app.invalidate()

    def _new_view(self) -> AnswerView:
        if self._config.markdown == "never":
            return AnswerView(PlainBlocks(), show_thought=self._config.reasoning)
        from kvchat.ui.markdown import MarkdownBlocks

        return AnswerView(MarkdownBlocks(color=self._color), show_thought=self._config.reasoning)
