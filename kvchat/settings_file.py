"""config.toml: where it is, and what it sets, each setting with its line. Is told which sections there are."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import platformdirs

from kvchat.errors import UsageError, reason_of
from kvchat.remotes import RemoteConfig
from kvchat.setting import ByteSize as ByteSize
from kvchat.setting import Origin
from kvchat.setting import parse_bytes as parse_bytes

_MAX_BYTES = 256 * 1024
"""Largest settings file."""
_MAX_PARTS = 100
_KEY_RUN = re.compile(r"[\w\-.\"' \t]+")
REMOTE = "remote"
"""The section of config.toml whose tables are remotes, by name."""


def read_settings(path: Path, sections: Mapping[str, type[Any]]) -> dict[str, Origin]:
    """What the file gives for settings (`section.key`) of the dataclasses in `sections`; nothing where there is none.

    Raises UsageError for what can't be read or is not known, naming the line.
    """
    try:
        text = _settings_text(path)
        import tomllib  # no start without such a file waits for it

        table = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except RecursionError:
        raise UsageError(f"can't read {path}: it is nested too deeply", "correct or remove it") from None
    except (OSError, ValueError) as error:  # a number of 5,000 digits is a bare ValueError
        raise UsageError(f"can't read {path}: {reason_of(error)}", "correct or remove it") from error
    layers: dict[str, Origin] = {}
    lines = _lines_of(text)
    remotes = table.pop(REMOTE, {})
    tables = list(table.items())
    if isinstance(remotes, dict):
        tables += [(f"{REMOTE}.{name}", values) for name, values in remotes.items()]
    else:
        tables.append((REMOTE, remotes))
    for section, values in tables:
        where = f"{path}:{_line_of(lines, '', section)}"
        kind = RemoteConfig if section.startswith(f"{REMOTE}.") else sections.get(section)
        if kind is None and section != REMOTE:
            raise _unknown(section, [*sections, REMOTE], where)
        if not isinstance(values, dict) or kind is None:
            remedy = f"write [{section}.NAME]" if section == REMOTE else f"write [{section}]"
            raise UsageError(f"{where}: {section!r} is a section, not a setting", remedy)
        known = [item.name for item in fields(kind)]
        for key, value in values.items():
            where = f"{path}:{_line_of(lines, section, key)}"
            if key not in known:
                raise _unknown(key, known, where)
            layers[f"{section}.{key}"] = Origin(value, where)
    return layers


def _settings_text(path: Path) -> str:
    """What a settings file says. Raises OSError and ValueError; a pipe or a device is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        is_nothing = os.path.samestat(os.fstat(descriptor), Path(os.devnull).stat())
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) and not is_nothing:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            raise (
                IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                if is_folder
                else OSError("it is not a file")
            )
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES // 1024} KiB")
    text = data.decode("utf-8-sig")
    for run in _KEY_RUN.finditer(text):  # a key of 30,000 parts takes tomllib a minute
        if run[0].count(".") > _MAX_PARTS and text[run.end() : run.end() + 1] in ("=", "]"):
            raise ValueError("a key in it has too many parts")
    return text


def _unknown(key: str, known: list[str], where: str) -> UsageError:
    nearest = difflib.get_close_matches(key[:60], known, n=1, cutoff=0.0)
    return UsageError(f"{where}: no setting is called {key[:60]!r}", f"did you mean {nearest[0]!r}?")


def _lines_of(text: str) -> dict[str, int]:
    """Where each section and setting of TOML stands first, counted from 1."""
    lines: dict[str, int] = {}
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        begun = line.strip()
        if begun.startswith("["):
            inside = begun.strip("[ \t").partition("]")[0].strip()
            lines.setdefault(inside, number)
        elif "=" in begun:
            name = re.sub(r"[\s\"']", "", begun.partition("=")[0])
            lines.setdefault(f"{inside}.{name}" if inside else name, number)
    return lines


def _line_of(lines: Mapping[str, int], section: str, key: str) -> int:
    """The line that gives `section.key`, or its inline table's; 1 when it can't be told."""
    return lines.get(f"{section}.{key}".lstrip("."), lines.get(section, 1))


def own_folder(kind: Callable[[str], Path]) -> Path:
    """Where the platform keeps our files of a kind. Raises UsageError for a user without a home folder."""
    try:
        path = kind("kvchat")
    except RuntimeError:
        path = Path("~")
    if not path.is_absolute():
        names = "KVCHAT_CONFIG, KVCHAT_MODELS, KVCHAT_CACHE_DIR and KVCHAT_DATA"
        raise UsageError("there is no home folder", f"set HOME, or all of {names}")
    return path


def runtime_folder(environ: Mapping[str, str]) -> Path:
    """Where sockets lie: the session's folder for them, or one of the user's own among the temporary files."""
    session = environ.get("XDG_RUNTIME_DIR")
    return Path(session) / "kvchat" if session else Path("/tmp") / f"kvchat-{os.getuid()}"


def config_file(environ: Mapping[str, str] | None = None) -> Path:
    """Where config.toml is looked for: `KVCHAT_CONFIG`, or the platform's config folder."""
    environ = os.environ if environ is None else environ
    named = environ.get("KVCHAT_CONFIG")
    if named:
        try:
            return Path(named).expanduser()
        except RuntimeError:
            raise UsageError(
                f"KVCHAT_CONFIG: {named[:40]!r} begins with a user that does not exist", "give a path"
            ) from None
    return own_folder(platformdirs.user_config_path) / "config.toml"
