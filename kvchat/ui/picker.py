"""A list to choose from, as rows of text. Knows neither keys nor what is chosen for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

NUM_ROWS = 8
"""Most rows of a list that are shown at once."""


class Picker:
    """A list that stands at row `at` (-1 is the last). `then` is called with the number of the row that is taken."""

    def __init__(
        self, title: str, labels: Sequence[str], then: Callable[[int], None], *, at: int = -1
    ) -> None:
        assert labels
        self.then = then
        self.at = at % len(labels)
        self._typed = 0
        self._title = title
        self._labels = [" ".join(label.split()) for label in labels]

    def move(self, step: int) -> None:
        """Go up or down, and stop at the ends."""
        self.at = max(0, min(len(self._labels) - 1, self.at + step))

    def type(self, digit: int) -> None:
        """Go to the row whose number is typed, digit by digit; a number that is none begins anew."""
        count = len(self._labels)
        self._typed = next((n for n in (10 * self._typed + digit, digit) if 1 <= n <= count), 0)
        self.at = self._typed - 1 if self._typed else self.at

    def rows(self, columns: int) -> list[str]:
        """The title and the rows around the one it stands at, cut to the screen's width."""
        first = max(0, min(self.at - NUM_ROWS // 2, len(self._labels) - NUM_ROWS))
        shown = enumerate(self._labels[first : first + NUM_ROWS], first)
        lines = [f"{'→' if number == self.at else ' '} {number + 1}. {label}" for number, label in shown]
        return [line[: columns - 1] for line in (self._title, *lines)]
