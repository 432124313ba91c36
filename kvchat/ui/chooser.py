"""The list to choose from that stands where the input's rows are: one at a time, with the verbs of its keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvchat.errors import KvchatError
from kvchat.ui.picker import Picker


class Chooser:
    """Shows a list until a row is taken or the list is left. Lives in the event loop's thread."""

    def __init__(self, show_error: Callable[[KvchatError], None]) -> None:
        self._show_error = show_error
        self._picker: Picker | None = None

    @property
    def is_open(self) -> bool:
        """Whether a list is shown."""
        return self._picker is not None

    def rows(self, columns: int) -> list[str]:
        """The list as it is drawn; empty where there is none."""
        return self._picker.rows(columns) if self._picker else []

    def open(self, title: str, labels: Sequence[str], take: Callable[[int], None], at: int = -1) -> None:
        """Show a list that stands at row `at` (-1 is the last); `take` is called with the row that is chosen."""
        self._picker = Picker(title, labels, take, at=at)

    def move(self, step: int) -> None:
        """Go up or down in the list."""
        if self._picker is not None:
            self._picker.move(step)

    def page(self, step: int) -> None:
        """Go up or down by a screenful of the list."""
        if self._picker is not None:
            self._picker.page(step)

    def narrow(self, char: str) -> None:
        """Filter the list by what is typed, or go to a row by its number."""
        if self._picker is not None:
            self._picker.type(char)

    def widen(self) -> None:
        """Take back the last character of the filter."""
        if self._picker is not None:
            self._picker.erase()

    def choose(self) -> None:
        """Take what the list stands at."""
        picker, self._picker = self._picker, None
        if picker is not None:
            try:
                picker.take()
            except KvchatError as error:
                self._show_error(error)

    def drop(self) -> None:
        """Leave the list."""
        self._picker = None
