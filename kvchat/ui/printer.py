"""What the program says in a dialogue, as lines above the input, broken between words. Knows no session."""

from __future__ import annotations

from kvchat.errors import KvchatError
from kvchat.ui.answer import wrapped
from kvchat.ui.clean import sanitize
from kvchat.ui.live_part import PROMPT
from kvchat.ui.render import dim, error_line
from kvchat.ui.screen import Screen
from kvchat.ui.tables import Look

_ECHOED = 20_000  # characters of a message


class Printer:
    """Prints on one screen. Lives in the event loop's thread."""

    def __init__(self, screen: Screen, *, color: bool) -> None:
        self._screen = screen
        self._color = color
        self._warnings: list[str] = []  # that came amid an answer

    @property
    def look(self) -> Look:
        """How what a command says is shown."""
        return Look(self._screen.columns, color=self._color)

    def show(self, text: str) -> None:
        """Print dim lines."""
        self._screen.print_above(dim(sanitize(text)))

    def tell(self, text: str) -> None:
        """Print what was done, broken between words."""
        self.show(self.wrapped(text))

    def echo(self, text: str) -> None:
        """Print what was entered, of much of it the beginning."""
        more = len(text) - _ECHOED
        shown = f"{text[:_ECHOED]}… ({more} more characters)" if more > 0 else text
        self._screen.print_above(f"\x1b[1m{PROMPT}\x1b[22m" + sanitize(shown).replace("\n", "\n  "))

    def show_error(self, error: KvchatError) -> None:
        """Print an error with its remedy."""
        self.error(error.message, error.remedy)

    def error(self, message: str, remedy: str = "") -> None:
        """Print what went wrong, and what to do."""
        line = self.wrapped(error_line(message, remedy))
        self._screen.print_above(f"\x1b[31m{line}\x1b[39m" if self._color else line)

    def warn(self, message: str, *, is_now: bool) -> None:
        """Say something that is no answer to what was asked; unless `is_now` it waits for `say_warnings`."""
        if is_now:
            self.error(message)
        else:
            self._warnings.append(message)

    def say_warnings(self) -> None:
        """Print the warnings that had to wait."""
        warnings, self._warnings = self._warnings, []
        for message in warnings:
            self.error(message)

    def wrapped(self, text: str) -> str:
        """The text broken between words, as the terminal would not."""
        columns = max(2, self._screen.columns)
        return "\n".join(row for line in text.split("\n") for row in wrapped(line, columns))
