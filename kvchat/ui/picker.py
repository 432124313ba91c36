"""A list to choose from, as rows of text. Knows neither keys nor what is chosen for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

NUM_ROWS = 8
"""Most rows of a list that are shown at once."""


class Picker:
    """A list that stands at row `at` (-1 is the last), filtered by the words that are typed.

    `then` is called with the number of the row that is taken, as it was in the whole list.
    """

    def __init__(
        self, title: str, labels: Sequence[str], then: Callable[[int], None], *, at: int = -1
    ) -> None:
        assert labels
        self._then = then
        self._title = title
        self._labels = [" ".join(label.split()) for label in labels]
        self._filter = ""
        self._shown = list(range(len(labels)))  # rows that the filter leaves
        self._at = at % len(labels)
        self._typed = 0

    @property
    def at(self) -> int:
        """The row it stands at, of those that are shown."""
        return self._at

    def take(self) -> None:
        """Do what the row is for; nothing where none is left."""
        if self._shown:
            self._then(self._shown[self._at])

    def move(self, step: int) -> None:
        """Go up or down, and stop at the ends."""
        self._at = max(0, min(len(self._shown) - 1, self._at + step))

    def page(self, step: int) -> None:
        """Go up or down by what is shown at once."""
        self.move(step * NUM_ROWS)

    def type(self, char: str) -> None:
        """Narrow the list to rows that have all words typed so far; a number goes to its row as long as nothing else was
        typed, and begins anew where it is none."""
        if char.isdecimal() and not self._filter:
            count = len(self._shown)
            self._typed = next((n for n in (10 * self._typed + int(char), int(char)) if 1 <= n <= count), 0)
            self._at = self._typed - 1 if self._typed else self._at
        elif char.isprintable() and (self._filter or char != " "):
            self._narrow(self._filter + char)

    def erase(self) -> None:
        """Take the last character of the filter back."""
        self._narrow(self._filter[:-1])

    def rows(self, columns: int) -> list[str]:
        """The title with its count and filter, and the rows around the one it stands at, cut to the screen's width."""
        first = max(0, min(self._at - NUM_ROWS // 2, len(self._shown) - NUM_ROWS))
        shown = enumerate(self._shown[first : first + NUM_ROWS], first)
        lines = [
            f"{'→' if place == self._at else ' '} {place + 1}. {self._labels[row]}" for place, row in shown
        ]
        return [line[: columns - 1] for line in (self._head(), *(lines or ["  nothing matches"]))]

    def _head(self) -> str:
        count, total = len(self._shown), len(self._labels)
        if self._filter:
            return f"{self._title} {count} of {total} with {self._filter!r}"
        return f"{self._title} {total}, type to filter" if total > NUM_ROWS else self._title

    def _narrow(self, text: str) -> None:
        self._filter, self._typed = text, 0
        words = text.casefold().split()
        labels = enumerate(self._labels)
        self._shown = [row for row, label in labels if all(word in label.casefold() for word in words)]
        self._at = max(0, min(self._at, len(self._shown) - 1)) if not text else 0
