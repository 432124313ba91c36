"""What a command is, and what it may touch. Knows no command and no screen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kvchat.backends.base import Backend, Event
from kvchat.chat.session import Session
from kvchat.errors import UsageError
from kvchat.trust import Trust
from kvchat.ui.tables import Look


def _no_other(name: str) -> Backend:
    raise UsageError("the model can't be changed here", "leave, and start again with -m")


def _forget_nothing(gone: Collection[tuple[str, str]], kept: Collection[tuple[str, str]]) -> None:
    return None


def _no_file(values: Mapping[str, object]) -> Path:
    raise UsageError("settings can't be saved here", "write them into config.toml")


def _no_code(name: str) -> None:
    raise UsageError(
        "no model's code can be trusted here", f"leave, and start again with -m {name} --trust-remote-code"
    )


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model on this disk: the name that it is loaded by, what it is called, its size in bytes, and whose it is."""

    name: str
    label: str
    num_bytes: int
    program: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What lies outside of the conversation: other models, and the cache's folder.

    `open_model` gives the backend of a model that is not loaded yet; `models` are those on this disk;
    `stored_tips` says how many tokens are stored up to each (fingerprint, block hash). `trust` is whom the user trusts,
    and `trust_code` takes their word about a model. `origins` says where each setting (`section.key`) was given that has
    not its default; `save_settings` writes some into config.toml, which it returns. `forget` deletes the KV up to some
    tips, but for what others need.
    """

    open_model: Callable[[str], Backend] = _no_other
    models: Callable[[], Sequence[ModelRow]] = tuple
    stored_tips: Callable[[], Mapping[tuple[str, str], int]] = dict
    trust: Trust = field(default_factory=Trust)
    trust_code: Callable[[str], None] = _no_code
    origins: Mapping[str, str] = field(default_factory=dict)
    save_settings: Callable[[Mapping[str, object]], Path] = _no_file
    forget: Callable[[Collection[tuple[str, str]], Collection[tuple[str, str]]], object] = _forget_nothing


@dataclass(frozen=True, slots=True)
class Choice:
    """One row of a list to choose from, and the command that taking it runs; empty for none."""

    label: str
    command: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """What goes along with the next message."""

    label: str
    message: str

    @property
    def size(self) -> str:
        """Its length in lines."""
        count = len(self.message.splitlines())
        return "1 line" if count == 1 else f"{count} lines"


@dataclass(frozen=True, slots=True)
class Asking:
    """What a command that asks the model gives: its events, and what to show before them."""

    events: Iterator[Event]
    note: str = ""


class Desk(Protocol):
    """What a command may touch: the session, how things are shown, the input, and the way out. From any thread."""

    session: Session
    surroundings: Surroundings

    @property
    def look(self) -> Look:
        """How what a command says is shown."""

    def leave(self) -> None:
        """End the program."""

    def copy(self, text: str) -> None:
        """Put a text on the terminal's clipboard. Raises KvchatError."""

    def put_back(self, text: str) -> None:
        """Put a text into the input, ahead of what was typed."""

    def offer(self, title: str, choices: Sequence[Choice], at: int = 0) -> None:
        """Let the user choose one of at least one, beginning at row `at`, or none."""

    def attach(self, attachment: Attachment) -> None:
        """Send it along with the next message."""

    def show_loading(self, backend: Backend | None) -> None:
        """Show how far the loading of a backend is that the session does not have yet; None for no longer."""


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """One command. `run` takes what follows the name and returns what to show; `anytime` also during an answer.

    `choices` are what Tab offers for the argument; with `takes_file` it offers files.
    """

    name: str
    arguments: str
    help: str
    run: Callable[[Desk, str], str | Asking]
    anytime: bool = False
    choices: Callable[[Desk], Iterable[str]] = lambda desk: ()
    takes_file: bool = False


def number(argument: str, default: int) -> int:
    """The number that an argument is. Raises UsageError for anything else."""
    try:
        return int(argument or default)
    except ValueError:
        raise UsageError(f"{argument!r} is not a number", "give a whole number") from None
