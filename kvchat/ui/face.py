"""What keys may show and end, beside what a command may touch. Knows no key."""

from __future__ import annotations

from typing import Protocol

from kvchat.errors import KvchatError
from kvchat.ui.desk import Desk


class Face(Desk, Protocol):
    """What keys may show, beside what a command may touch."""

    def show(self, text: str) -> None:
        """Print dim lines above the input."""

    def echo(self, text: str) -> None:
        """Print what was entered above the input."""

    def show_error(self, error: KvchatError) -> None:
        """Print an error above the input."""

    def on_result(self, text: str, shown: str, error: KvchatError | None) -> None:
        """Show what a command gave."""

    def stop_loading(self) -> bool:
        """Give up another model that is being loaded; whether there is one."""

    def break_off(self) -> None:
        """End the dialogue, as Ctrl-C does."""

    @property
    def thought(self) -> str:
        """What the model thinks now, or thought before its last answer."""
