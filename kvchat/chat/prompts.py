"""Saved system prompts: Markdown files with a YAML head and a Jinja body. Finds, reads and renders them.

Looked for in three places, the first wins: `./prompts` if the user trusts it, the user's folder, those that are
shipped. Only regular files of a bounded size are read, and whatever stands in them ends in a UsageError at worst. The
body is strict (an undefined variable is an error) and sandboxed; beside its variables it may call `today()` and
`now(format)`, and include files of its own folder.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from kvchat.chat.rendering import rendered
from kvchat.config import Config, config_file, load_config, setting_key
from kvchat.errors import UsageError, reason_of

SUFFIX = ".md"
_KEYS = ("description", "model", "options", "vars", "pin")
_NAME = re.compile(r"[\w][\w.\-]*")
_MAX_BYTES = 2**20
_MAX_HEAD = 2**15  # characters
_MAX_DEPTH = 8
_MAX_SAID = 500  # characters of a message about a file, its path among them


class Shelf(StrEnum):
    """Where a prompt stands."""

    HERE = "here"
    YOURS = "yours"
    SHIPPED = "shipped"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. `first_line` is the line of its file where `body` begins.

    `vars` maps each variable to its default, None where a value has to be given. `options` are sampling options.
    """

    name: str
    path: Path
    shelf: Shelf
    body: str
    first_line: int = 1
    description: str = ""
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    vars: Mapping[str, str | None] = field(default_factory=dict)
    pin: bool = False

    def settings(self, system: str) -> dict[str, object]:
        """What it sets, as `load_config` takes it; `system` is its rendered text."""
        options = {f"sampling.{name}": value for name, value in self.options.items()}
        return {"chat.system": system, "chat.pin": self.pin, "model.name": self.model, **options}

    def render(self, values: Mapping[str, str], now: datetime) -> str:
        """Its text with these variables. Raises UsageError: a value too many or too few, or an error in the body."""
        for name in values:
            if name not in self.vars:
                raise UsageError(f"{self.path} has no variable {name!r}", _nearest(name, self.vars))
        given = {name: values.get(name, default) for name, default in self.vars.items()}
        for name, value in given.items():
            if value is None:
                raise UsageError(f"{self.path} needs a value for {name!r}", f"give --var {name}=VALUE")
        return rendered(self.body, given, path=self.path, first_line=self.first_line, now=now)


class Prompts:
    """All prompts that can be named here. `folders` in the order in which they win; nothing `untrusted` is read."""

    def __init__(self, folders: Sequence[tuple[Shelf, Path]], untrusted: Path | None = None) -> None:
        self._folders = folders
        self.untrusted = untrusted
        """The folder beside the user's work, where the user did not say that it is trusted."""

    @classmethod
    def around(
        cls,
        folder: Path,
        environ: Mapping[str, str] | None = None,
        *,
        is_trusted: Callable[[Path], bool] = lambda folder: False,
    ) -> Prompts:
        """Those of a working folder, if `is_trusted` says so of it, the user's and the shipped ones."""
        here = folder / "prompts"
        own = [(Shelf.YOURS, user_folder(environ)), (Shelf.SHIPPED, shipped_folder())]
        if not here.is_dir() or here.resolve() in (place.resolve() for _, place in own):
            return cls(own)  # with kvchat's own repository
        return cls([(Shelf.HERE, here), *own]) if is_trusted(here) else cls(own, here)

    def paths(self) -> dict[str, tuple[Shelf, Path]]:
        """Every name with the file that wins, in the order of names."""
        found: dict[str, tuple[Shelf, Path]] = {}
        for shelf, folder in reversed(self._folders):
            found |= {path.stem: (shelf, path) for path in _files(folder)}
        return dict(sorted(found.items()))

    def waiting(self) -> dict[str, Path]:
        """The names in the folder that is not trusted, in their order."""
        return {path.stem: path for path in _files(self.untrusted)} if self.untrusted else {}

    def prompt(self, name: str) -> Prompt:
        """The prompt of this name, or in the file of this name if it ends in .md. Raises UsageError."""
        paths = self.paths()
        if name in paths:
            return read_prompt(paths[name][1], paths[name][0])
        if name.endswith(SUFFIX):
            return read_prompt(Path(name).expanduser(), Shelf.HERE)
        if name in self.waiting():
            raise UsageError(
                f"the prompt {name!r} lies in {self.untrusted}, which you have not said you trust",
                "look at it, then say kvchat prompts trust, or give --trust-prompts for once",
            )
        raise UsageError(f"no prompt is called {name!r}", _nearest(name, paths))


def user_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where the user's prompts lie."""
    return config_file(environ).parent / "prompts"


def shipped_folder() -> Path:
    """Where the prompts lie that came with the program: in the package, or beside it where it runs from its sources."""
    package = Path(str(files("kvchat")))
    packed = package / "prompts_shipped"
    return packed if packed.is_dir() else package.parent / "prompts"


def check_name(name: str) -> str:
    """A name that a prompt can be saved under. Raises UsageError for another."""
    if not _NAME.fullmatch(name) or name.endswith(SUFFIX):
        raise UsageError(f"a prompt can't be called {name!r}", "use letters, digits, -, _ and .")
    return name


def _files(folder: Path) -> list[Path]:
    """The files of prompts in a folder whose names can be said, in their order."""
    try:
        return sorted(path for path in folder.glob("*" + SUFFIX) if path.stem.isprintable())
    except OSError:
        return []


def read_prompt(path: Path, shelf: Shelf) -> Prompt:
    """The prompt in a file. Raises UsageError, with the line, for what is wrong in its head."""
    try:
        text = prompt_text(path).lstrip("\ufeff").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"can't read the prompt in {path}: {reason_of(error)}", "check the path") from None
    try:
        return _prompt_in(text, path, shelf)
    except UsageError as error:
        raise UsageError(_bounded(error.message), _bounded(error.remedy)) from None
    except Exception as error:  # YAML runs into whatever its dates, numbers and nesting run into
        reason = _bounded(" ".join(str(error).split())) or type(error).__name__
        raise UsageError(f"{path}: its head can't be read: {reason}", "mend the head; it is YAML") from None


def prompt_text(path: Path) -> str:
    """What stands in a regular file. Raises OSError, and ValueError for another, and for one that is too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its writer
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it is longer than {_MAX_BYTES} bytes")
    return content.decode("utf-8")


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_SAID else text[:_MAX_SAID] + " …"


def _prompt_in(text: str, path: Path, shelf: Shelf) -> Prompt:
    head, body, first_line = _split(text, path)
    if len(head) > _MAX_HEAD:
        raise UsageError(f"{path}, line 1: the head has more than {_MAX_HEAD} characters", "shorten it")
    values = _head(head, path)
    return Prompt(
        path.stem,
        path,
        shelf,
        body,
        first_line,
        values.text("description") or "",
        values.text("model"),
        values.options(),
        values.variables(),
        values.flag("pin"),
    )


def _split(text: str, path: Path) -> tuple[str, str, int]:
    """Head, body, and the line where the body begins."""
    lines = text.split("\n")
    if lines[0].rstrip() != "---":
        return "", text.strip("\n"), 1 + len(text) - len(text.lstrip("\n"))
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() == "---":
            start = number + 1
            while start + 1 < len(lines) and not lines[start].strip():
                start += 1
            return "\n".join(lines[1:number]), "\n".join(lines[start:]).rstrip(), start + 1
    raise UsageError(f"{path}, line 1: the head has no end", "close it with a line of ---")


def _head(text: str, path: Path) -> _Head:
    try:
        values = yaml.load(text, _HeadLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        number = mark.line + 2 if mark else 2
        problem = getattr(error, "problem", None) or "no YAML"
        raise UsageError(f"{path}, line {number}: {problem}", "mend the head; it is YAML") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UsageError(
            f"{path}, line 2: the head is no mapping", f"give it keys such as {', '.join(_KEYS)}"
        )
    head = _Head(text, path, values)
    for key in values:
        if key not in _KEYS:
            head.refuse(key, f"no key is called {key!r}", _nearest(str(key), _KEYS))
    return head


class _HeadLoader(yaml.SafeLoader):
    """YAML without aliases, of which a few lines can make more than any memory holds, and without deep nesting."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, unless it stands for another or lies too deep."""
        is_alias = self.check_event(yaml.events.AliasEvent)
        mark: Any = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if is_alias or self._depth == _MAX_DEPTH:
            problem = "aliases are not taken" if is_alias else "it is nested too deeply"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


@dataclass(frozen=True, slots=True)
class _Head:
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
            self.refuse(key, f"{key} is no text", "put it in quotes")
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
            self.refuse("options", "options is no mapping", "give it keys such as temperature")
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
                "vars", "vars is no mapping of names", "write `name: default`, or `name:` without one"
            )
        for name, value in given.items():
            if isinstance(value, list | dict | set | tuple | bytes):
                self.refuse(name, f"the default of {name} is no text", "write it in quotes")
        return {name: None if value is None else str(value) for name, value in given.items()}


def _setting(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    if section != "sampling":
        raise UsageError(f"{name!r} is no sampling option", "only those of sampling may stand here")
    return getattr(config.sampling, name)


def _nearest(name: str, names: Mapping[str, object] | Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    return f"there is {', '.join(names)}" if names else "there is none"
