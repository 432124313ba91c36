"""What a line that begins with `/` does: a table with a row a command. Knows the session, no screen."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

from kvchat.backends.base import Options
from kvchat.chat.session import Session
from kvchat.config import load_config
from kvchat.errors import UsageError
from kvchat.ui.render import stats_line

KEYS = (
    ("Enter", "send; Alt-Enter, Ctrl-J or a trailing \\ make a new line"),
    ("Ctrl-C, Esc", "stop an answer, what was said stays; Ctrl-C clears the input, twice leaves"),
    ("Up, Down", "earlier messages; Up takes a queued message back"),
    ("Tab, Ctrl-L", "complete a command; redraw the screen"),
    ("Ctrl-D", "leave"),
)


class Desk(Protocol):
    """What a command may touch: the session, and the way out."""

    session: Session

    def leave(self) -> None:
        """End the program."""


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """One command. `run` takes what follows the name and returns what to show; `anytime` also during an answer."""

    name: str
    arguments: str
    help: str
    run: Callable[[Desk, str], str]
    anytime: bool = False


def is_command(text: str) -> bool:
    """Whether a line is a command; `//` is a slash that is meant."""
    return text.startswith("/") and not text.startswith("//")


def find(text: str) -> tuple[SlashCommand, str]:
    """The command of a line, and its argument. Raises UsageError, naming the nearest command."""
    name, *rest = text.split(maxsplit=1)
    for command in COMMANDS:
        if command.name == name:
            return command, rest[0].strip() if rest else ""
    nearest = difflib.get_close_matches(name, [command.name for command in COMMANDS], n=1, cutoff=0.0)[0]
    raise UsageError(f"no command is called {name}", f"did you mean {nearest}? (// begins with a real slash)")


def completions(text: str) -> list[str]:
    """The commands that a line may become."""
    if not is_command(text) or " " in text or "\n" in text:
        return []
    return [command.name for command in COMMANDS if command.name.startswith(text)]


def common_start(names: list[str]) -> str:
    """What all of the names begin with."""
    first, last = min(names), max(names)
    num_equal = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:num_equal]


def _help(desk: Desk, argument: str) -> str:
    rows = [(f"{command.name} {command.arguments}".strip(), command.help) for command in COMMANDS]
    width = max(len(name) for name, _ in (*rows, *KEYS))
    return "\n".join(f"{name:<{width}}  {about}" for name, about in (*rows, *KEYS))


def _clear(desk: Desk, argument: str) -> str:
    desk.session.clear()
    return "a new conversation begins" + ("; the system prompt stays" if desk.session.system else "")


def _system(desk: Desk, argument: str) -> str:
    if argument:
        desk.session.set_system(None if argument == "-" else argument)
        done = "removed" if argument == "-" else "replaced"
        return f"the system prompt is {done}; that counts from the next message on"
    return desk.session.system or "there is no system prompt; set one with /system TEXT"


def _set(desk: Desk, argument: str) -> str:
    key, _, value = argument.partition(" ")
    options = desk.session.options
    names = [item.name for item in fields(Options)]
    if key and key not in names:
        nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
        raise UsageError(f"no option is called {key!r}", f"did you mean {nearest!r}?")
    if value.strip():
        desk.session.options = replace(options, **{key: _option(key, value.strip())})
    shown = [key] if key else names
    return "\n".join(f"{name} = {_shown(getattr(desk.session.options, name))}" for name in shown)


def _option(key: str, value: str) -> Any:
    """A sampling option from its text, by the settings' own rules; `default` is the model's own."""
    if value == "default":
        return getattr(Options(), key)
    config = load_config({f"sampling.{key}": value}, environ={"KVCHAT_CONFIG": os.devnull})
    return asdict(config.sampling)[key]


def _shown(value: object) -> str:
    return "default" if value is None or value == () else repr(value)


def _stats(desk: Desk, argument: str) -> str:
    totals, last = desk.session.totals, desk.session.last
    if last is None:
        return "nothing was answered yet"
    asked = totals.cached_tokens + totals.prefilled_tokens
    return "\n".join(
        (
            f"answers {totals.answers} · generated {totals.completion_tokens} tokens",
            f"prompts {asked} tokens · cached {totals.cached_tokens} ({100 * totals.hit_rate:.0f}%)"
            f" · prefilled {totals.prefilled_tokens}",
            "last: " + stats_line(last, desk.session.backend.info().context),
            f"cache: {last.cache.reason}, from token {last.cache.diverged_at}",
        )
    )


def _tokens(desk: Desk, argument: str) -> str:
    context = desk.session.backend.info().context
    if argument:
        return f"{desk.session.backend.count(argument)} tokens"
    used = desk.session.last.usage.total_tokens if desk.session.last else 0
    return f"the conversation has {used} tokens of {context}"


def _exit(desk: Desk, argument: str) -> str:
    desk.leave()
    return ""


COMMANDS: tuple[SlashCommand, ...] = (
    SlashCommand("/help", "", "this list", _help, anytime=True),
    SlashCommand("/clear", "", "begin a new conversation", _clear),
    SlashCommand("/system", "[TEXT|-]", "show, replace or remove the system prompt", _system),
    SlashCommand("/set", "[KEY [VALUE]]", "show or change how answers are sampled", _set),
    SlashCommand("/stats", "", "what the cache saved", _stats, anytime=True),
    SlashCommand("/tokens", "[TEXT]", "count the tokens of a text, or of the conversation", _tokens),
    SlashCommand("/exit", "", "leave", _exit, anytime=True),
)
