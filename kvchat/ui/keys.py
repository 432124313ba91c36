"""Which key means what. Knows the verbs of a dialogue, not how they are done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from prompt_toolkit.filters import Condition, Filter, is_searching, vi_insert_mode, vi_mode
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent
from prompt_toolkit.keys import Keys

_ENTER_WITH_A_MODIFIER = tuple(
    form % code for code in (2, 3, 4, 5, 6) for form in ("\x1b[13;%du", "\x1b[27;%d;13~")
)


class Dialogue(Protocol):
    """What keys can ask for."""

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being made."""

    @property
    def is_asking(self) -> bool:
        """Whether a question waits for y or n."""

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

    def search(self) -> None:
        """Search earlier messages as they are typed."""

    def complete(self) -> None:
        """Complete what is being typed."""

    def paste(self, text: str) -> None:
        """Take what was pasted into the input."""

    def erase(self) -> None:
        """Backspace: the character before the cursor, a paste, or in an empty input what was attached last."""

    def edit(self) -> None:
        """Open the input in an editor."""

    def show_variant(self, command: str) -> None:
        """Go to the next or the previous answer that there is to the last message."""

    def rewind(self) -> None:
        """List the user's messages, to go back to one."""

    def reply(self, is_yes: bool) -> None:
        """Answer the question."""

    def show_thought(self) -> None:
        """Show what the model thought before its last answer."""

    def redraw_all(self) -> None:
        """Clear the screen and draw it again."""

    def suspend(self) -> None:
        """Give the terminal back to the shell."""


class Choosing(Protocol):
    """What keys can ask of a list to choose from."""

    @property
    def is_open(self) -> bool:
        """Whether a list is shown."""

    def move(self, step: int) -> None:
        """Go up (-1) or down (1) in the list."""

    def page(self, step: int) -> None:
        """Go up (-1) or down (1) by a screenful of the list."""

    def narrow(self, char: str) -> None:
        """Filter the list by what is typed, or go to a row by its number, a digit at a time."""

    def widen(self) -> None:
        """Take back the last character of the filter."""

    def choose(self) -> None:
        """Take what the list stands at."""

    def drop(self) -> None:
        """Leave the list."""


def key_bindings(dialogue: Dialogue, chooser: Choosing) -> KeyBindings:
    """All keys of a dialogue; what is not here is prompt_toolkit's own editing."""
    for sequence in _ENTER_WITH_A_MODIFIER:
        ANSI_SEQUENCES[sequence] = (Keys.Escape, Keys.ControlM)
    picking = Condition(lambda: chooser.is_open)
    asking = Condition(lambda: dialogue.is_asking) & ~picking
    free = ~picking & ~asking & ~is_searching
    keys = KeyBindings()
    _bind_input(keys, dialogue, free)
    _bind_list(keys, chooser, picking)
    _bind_question(keys, dialogue, asking)
    return keys


def _bind_input(keys: KeyBindings, dialogue: Dialogue, free: Filter) -> None:
    rows: dict[str, Callable[[], None]] = {
        "enter": dialogue.submit,
        "c-c": dialogue.interrupt,
        "<sigint>": dialogue.interrupt,
        "c-d": dialogue.end_of_input,
        "up": dialogue.recall,
        "c-r": dialogue.search,
        "tab": dialogue.complete,
        "c-g": dialogue.edit,
        "c-x c-e": dialogue.edit,
        "c-o": dialogue.show_thought,
        "c-l": dialogue.redraw_all,
        "c-z": dialogue.suspend,
    }
    for key, verb in rows.items():
        keys.add(*key.split(), filter=free)(_calling(verb))
    answering = Condition(lambda: dialogue.is_answering)
    commanding = free & ~(vi_mode & vi_insert_mode)  # in vi's insert mode, Esc belongs to vi
    keys.add("escape", filter=commanding & answering)(_calling(dialogue.stop))
    keys.add("escape", "escape", filter=commanding & ~answering)(_calling(dialogue.rewind))
    for key, command in (("n", "/next"), ("p", "/previous")):
        keys.add("escape", key, filter=free & ~vi_mode)(_calling(partial(dialogue.show_variant, command)))
    keys.add("backspace", filter=free & ~(vi_mode & ~vi_insert_mode))(_calling(dialogue.erase))
    keys.add(Keys.BracketedPaste, filter=free)(lambda event: dialogue.paste(event.data))
    keys.add("c-j", filter=free)(_new_line)
    keys.add("escape", "enter", filter=free)(_new_line)


def _bind_list(keys: KeyBindings, chooser: Choosing, picking: Filter) -> None:
    rows: dict[str, Callable[[], None]] = {
        "up": lambda: chooser.move(-1),
        "c-p": lambda: chooser.move(-1),
        "down": lambda: chooser.move(1),
        "c-n": lambda: chooser.move(1),
        "enter": chooser.choose,
        "escape": chooser.drop,
        "c-c": chooser.drop,
        "c-d": chooser.drop,
        "<sigint>": chooser.drop,
        "pageup": lambda: chooser.page(-1),
        "pagedown": lambda: chooser.page(1),
        "backspace": chooser.widen,
    }
    for key, verb in rows.items():
        keys.add(key, filter=picking)(_calling(verb))

    @keys.add("<any>", filter=picking)
    def narrow(event: KeyPressEvent) -> None:
        if len(event.data) == 1:  # no other key, and no paste
            chooser.narrow(event.data)


def _bind_question(keys: KeyBindings, dialogue: Dialogue, asking: Filter) -> None:
    for key in ("y", "Y"):
        keys.add(key, filter=asking)(_calling(lambda: dialogue.reply(True)))
    for key in ("n", "N", "enter", "escape", "c-c", "<sigint>"):
        keys.add(key, filter=asking)(_calling(lambda: dialogue.reply(False)))

    @keys.add("<any>", filter=asking)
    def go_on_typing(event: KeyPressEvent) -> None:
        dialogue.reply(False)
        event.current_buffer.insert_text(event.data)


def _calling(verb: Callable[[], None]) -> Callable[[KeyPressEvent], None]:
    return lambda event: verb()


def _new_line(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")
