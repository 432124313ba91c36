"""The terminal as it is written to: a frame at a time. Knows nothing of what is shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prompt_toolkit.data_structures import Size
from prompt_toolkit.output.vt100 import Vt100_Output

from kvchat.ui.clean import raw

_BEGIN_SYNC = "\x1b[?2026h"
_END_SYNC = "\x1b[?2026l"


class FramedOutput(Vt100_Output):
    """A terminal that is written to once a frame, so that nothing half-drawn is ever seen.

    `rewraps` tells that it rewraps its rows by the rules of tmux when it gets narrower.
    """

    rewraps = False
    _depth = 0

    @contextmanager
    def frame(self) -> Iterator[None]:
        """All that is written inside reaches the terminal in one piece."""
        self._depth += 1
        if self._depth == 1:
            self.write_raw(_BEGIN_SYNC)
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.write_raw(_END_SYNC)
                self.flush()

    def erase_down(self) -> None:
        """Erase all behind the cursor, the first cell last: tmux keeps a screen that is erased from its first cell."""
        self.write_raw("\x1b7\x1b[C\x1b[J\x1b8\x1b[K")

    def flush(self) -> None:
        """Write what is buffered, unless a frame is being made."""
        if self._depth == 0:
            super().flush()


def terminal_output() -> FramedOutput:
    """stdout as a terminal. Never asks where the cursor is: some terminals don't answer."""
    term = os.environ.get("TERM", "")
    output = FramedOutput(raw(sys.stdout), _terminal_size, term=term or None, enable_cpr=False)
    output.rewraps = "TMUX" in os.environ or term.startswith("tmux")
    return output


def _terminal_size() -> Size:
    """Rows and columns; a terminal that says nothing, or 0, counts as 24 by 80."""
    try:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        columns, rows = 0, 0
    return Size(rows=rows or 24, columns=columns or 80)
