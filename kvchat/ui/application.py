"""prompt_toolkit's application, drawn where the live part begins even after the terminal was resized."""

from __future__ import annotations

from prompt_toolkit.application import Application
from prompt_toolkit.data_structures import Point
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.input.base import Input
from prompt_toolkit.layout import Layout
from prompt_toolkit.styles import Style

from kvchat.ui.output import FramedOutput
from kvchat.ui.reflow import Footprint

_STYLE = Style.from_dict(
    {"tail": "", "thought": "dim", "wait": "dim", "queued": "italic", "toolbar": "noreverse", "hint": "bold"}
)


class LiveApplication(Application[int]):
    """Draws the live part, and knows where it begins when the terminal has rewrapped it."""

    def __init__(self, source: Input, output: FramedOutput, layout: Layout, *, vi: bool) -> None:
        self._footprint = Footprint()
        self._columns = 0  # of the terminal when the live part was drawn
        super().__init__(
            layout=layout,
            editing_mode=EditingMode.VI if vi else EditingMode.EMACS,
            style=_STYLE,
            input=source,
            output=output,
            erase_when_done=True,
            after_render=lambda app: self._footprint.grow(app.renderer),
        )
        self._rewraps = output.rewraps
        self.ttimeoutlen = 0.05
        self.timeoutlen = 0.3

    def erase(self) -> None:
        """Erase the live part from its first row on, wherever that is now."""
        columns = self.output.get_size().columns
        if self._rewraps and columns < self._columns:
            above = self._footprint.rows_above(self.renderer._cursor_pos, columns)
            self.renderer._cursor_pos = Point(x=columns, y=above)
        self._columns = columns
        self.renderer.erase(leave_alternate_screen=False)
        self._footprint.clear()

    def _redraw(self, render_as_done: bool = False) -> None:
        """Draw; the terminal may have another width by now, though nobody has said so yet."""
        if self.output.get_size().columns != self._columns:
            self.erase()
        super()._redraw(render_as_done)

    def _on_resize(self) -> None:
        self.erase()
        self._redraw()
