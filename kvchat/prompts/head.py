"""The head of a saved prompt: YAML within bounds, and what its keys may hold. Knows no file."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kvchat.config import Config, load_config, setting_key
from kvchat.errors import UsageError

KEYS = ("description", "model", "options", "vars", "pin")
_MAX_CHARACTERS = 2**15
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Head:
    """The head's values, and where each stands."""

    source: str
    path: Path
    values: dict[str, Any]

    def refuse(self, key: object, problem: str, remedy: str) -> None:
        """Raise UsageError, naming the line of `key`."""
        lines = enumerate(self.source.split("\n"), 2)
        number = next(
            (n for n, line in lines if re.match(rf"""\s*(-\s*)?["']?{re.escape(str(key))}\b""", line)), 2
        )
        raise UsageError(f"{self.path}, line {number}: {problem}", remedy)

    def text(self, key: str) -> str | None:
        """A text, in one line."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self.refuse(key, f"{key} is not text", "put it in quotes")
        return None if value is None else " ".join(value.split())

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            self.refuse(key, f"{key} is neither true nor false", "give one of them")
        return bool(value)

    def options(self) -> dict[str, Any]:
        """Sampling options, by the settings' own rules."""
        options = self.values.get("options") or {}
        if not isinstance(options, dict):
            self.refuse("options", "options is not a mapping", "give it keys such as temperature")
        checked: dict[str, Any] = {}
        for name, value in options.items():
            try:
                key = setting_key(str(name))
                config = load_config({f"sampling.{name}": value}, environ={"KVCHAT_CONFIG": os.devnull})
                checked[str(name)] = _setting(config, key)
            except UsageError as error:
                self.refuse(name, error.message, error.remedy or "see kvchat --help")
        return checked

    def variables(self) -> dict[str, str | None]:
        """Variables and their defaults; a list has none."""
        given = self.values.get("vars") or {}
        if isinstance(given, list):
            given = dict.fromkeys(given)
        if not isinstance(given, dict) or not all(
            isinstance(name, str) and name.isidentifier() for name in given
        ):
            self.refuse(
                "vars", "vars is not a mapping of names", "write `name: default`, or `name:` without one"
            )
        for name, value in given.items():
            if isinstance(value, list | dict | set | tuple | bytes):
                self.refuse(name, f"the default of {name} is not text", "write it in quotes")
        return {name: None if value is None else str(value) for name, value in given.items()}


def _setting(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    if section != "sampling":
        raise UsageError(f"{name!r} is not a sampling option", "only sampling options may be set here")
    return getattr(config.sampling, name)


def head_of(text: str, path: Path) -> Head:
    """The values of a head that stands in the file at `path`. Raises UsageError, with the line, for what is wrong."""
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(f"{path}, line 1: the head has more than {_MAX_CHARACTERS} characters", "shorten it")
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        number = mark.line + 2 if mark else 2
        problem = getattr(error, "problem", None) or "no YAML"
        raise UsageError(f"{path}, line {number}: {problem}", "fix the head; it is YAML") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UsageError(
            f"{path}, line 2: the head is not a mapping", f"give it keys such as {', '.join(KEYS)}"
        )
    head = Head(text, path, values)
    for key in values:
        if key not in KEYS:
            head.refuse(key, f"no key is called {key!r}", nearest(str(key), KEYS))
    return head


class _Loader(yaml.SafeLoader):
    """YAML without aliases, of which a few lines can make more than any memory holds, and without deep nesting."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, unless it stands for another or lies too deep."""
        is_alias = self.check_event(yaml.events.AliasEvent)
        mark: Any = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if is_alias or self._depth == _MAX_DEPTH:
            problem = "aliases are not allowed" if is_alias else "it is nested too deeply"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def nearest(name: str, names: Mapping[str, object] | Sequence[str]) -> str:
    """What a name was probably meant to be, or all names that there are: a remedy."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    if found:
        return f"did you mean {found[0]!r}?"
    return f"there is {', '.join(names)}" if names else "there is none"
