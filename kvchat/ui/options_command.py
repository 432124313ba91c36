"""What `/set` does: the sampling options in force and where each comes from, changed, and saved. Knows no screen."""

from __future__ import annotations

import difflib
import os
from dataclasses import asdict, fields
from typing import Any

from kvchat.backends.base import MAX_TOKENS, Options, Phase
from kvchat.chat.session import WhenFull
from kvchat.config import WHEN_FULL, SamplingConfig, load_config
from kvchat.errors import UsageError
from kvchat.ui.desk import Desk

_SAVE = "--save"
_WHEN_FULL = "when_full"
_NAMES = (*(item.name for item in fields(SamplingConfig)), _WHEN_FULL)


def option_names(desk: Desk) -> list[str]:
    """What Tab offers."""
    return [*_NAMES, _SAVE]


def run_set(desk: Desk, argument: str) -> str:
    """Show all options, or one, or change one for this conversation; with --save for all to come.

    What is done when the context gets full counts among them.
    """
    words = argument.split()
    saves = _SAVE in words
    key, _, value = " ".join(word for word in words if word != _SAVE).partition(" ")
    if key:
        _check(key)
    if value and key == _WHEN_FULL:
        desk.session.when_full, desk.session.has_chosen = _when_full(value), True
    elif value:
        desk.session.set_option(key, _option(key, value))
    if saves:
        return _saved(desk, [key] if key else _changed(desk))
    return "\n".join(_row(desk, name) for name in ([key] if key else _NAMES))


def _check(key: str) -> None:
    if key not in _NAMES:
        nearest = difflib.get_close_matches(key, _NAMES, n=1)
        remedy = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(_NAMES)}"
        raise UsageError(f"no option is called {key!r}", remedy)


def _option(key: str, value: str) -> Any:
    """A sampling option from its text, by the settings' own rules; `default` leaves it to the model."""
    if value == "default":
        return getattr(Options(), key)
    config = load_config({f"sampling.{key}": value}, environ={"KVCHAT_CONFIG": os.devnull})
    return asdict(config.sampling)[key]


def _when_full(value: str) -> WhenFull:
    """What to do when the context gets full, from its word. Raises UsageError."""
    if value == "default":
        return WhenFull.ASK
    config = load_config({"chat.when_full": value}, environ={"KVCHAT_CONFIG": os.devnull})
    return WhenFull(config.chat.when_full or WhenFull.ASK)


def _row(desk: Desk, name: str) -> str:
    value, where = _in_force(desk, name)
    return f"{f'{name} = {_shown(value)}':<32} {where}".rstrip()


def _in_force(desk: Desk, name: str) -> tuple[object, str]:
    """What an option is for the next message, and where that comes from."""
    session = desk.session
    if name == _WHEN_FULL:
        return _how_full(desk)
    if name in session.preset.options:
        return session.preset.options[name], f"the prompt {session.preset.name}"
    value = getattr(session.options, name)
    if session.is_set(name):
        return value, "/set"
    if where := desk.surroundings.origins.get(f"sampling.{name}"):
        return value, where
    if value is None or value == ():
        return _of_model(desk, name)
    return value, "default"


def _how_full(desk: Desk) -> tuple[object, str]:
    """What is done when the context gets full, and who said so."""
    session, given = desk.session, desk.surroundings.origins.get("chat.when_full", "default")
    return str(session.when_full), "/set" if session.has_chosen else given


def _of_model(desk: Desk, name: str) -> tuple[object, str]:
    """What the model's own settings say, once they are known."""
    if desk.session.backend.status().phase in (Phase.STARTING, Phase.LOADING, Phase.FAILED):
        return None, "the model's own"
    own = getattr(desk.session.backend.info().defaults, name)
    if own is None and name == "max_tokens":
        return MAX_TOKENS, "default"
    return own, "default" if own is None or own == () else "the model's own"


def _changed(desk: Desk) -> list[str]:
    chosen = [_WHEN_FULL] if desk.session.has_chosen else []
    return [item.name for item in fields(Options) if desk.session.is_set(item.name)] + chosen


def _saved(desk: Desk, names: list[str]) -> str:
    if not names:
        return "nothing was changed with /set; there is nothing to save"
    session = desk.session
    values: dict[str, object] = {
        f"sampling.{name}": _for_file(getattr(session.options, name)) for name in names if name != _WHEN_FULL
    }
    if _WHEN_FULL in names:
        values[f"chat.{_WHEN_FULL}"] = str(session.when_full)
    path = desk.surroundings.save_settings(values)
    return f"{', '.join(names)} saved in {path}; new conversations start with that"


def _for_file(value: object) -> object:
    return None if value == () else value


def _shown(value: object) -> str:
    if value in WHEN_FULL:
        return str(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value == ():
        return "-"
    return f"{value:g}" if isinstance(value, float) else repr(value)
