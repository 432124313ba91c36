"""Which key means what. Knows the verbs of a dialogue, not how they are done."""

from __future__ import annotations

from typing import Protocol

from prompt_toolkit.filters import Condition
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent


class Dialogue(Protocol):
    """What keys can ask for."""

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being made."""

    def submit(self) -> None:
        """Send what is in the input."""

    def interrupt(self) -> None:
        """Stop, take back, clear or leave: what Ctrl-C means now."""

    def stop(self) -> None:
        """Stop the answer."""

    def end_of_input(self) -> None:
        """Ctrl-D: leave if the input is empty, or delete a character."""

    def recall(self) -> None:
        """Up: the queued message, the line above, or an earlier message."""

    def complete(self) -> None:
        """Complete the command that is being typed."""

    def redraw_all(self) -> None:
        """Clear the screen and draw anew."""

    def suspend(self) -> None:
        """Give the terminal back to the shell."""


def key_bindings(dialogue: Dialogue, *, vi: bool = False) -> KeyBindings:
    """All keys of a dialogue; what is not here is prompt_toolkit's own editing."""
    keys = KeyBindings()
    rows = {
        "enter": dialogue.submit,
        "c-c": dialogue.interrupt,
        "<sigint>": dialogue.interrupt,
        "c-d": dialogue.end_of_input,
        "up": dialogue.recall,
        "tab": dialogue.complete,
        "c-l": dialogue.redraw_all,
        "c-z": dialogue.suspend,
    }
    for key, verb in rows.items():
        keys.add(key)(lambda event, verb=verb: verb())
    keys.add("escape", filter=Condition(lambda: dialogue.is_answering and not vi))(
        lambda event: dialogue.stop()
    )
    keys.add("c-j")(_new_line)
    keys.add("escape", "enter")(_new_line)
    return keys


def _new_line(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")
