"""One setting's value: where it came from, and how text becomes what the setting takes. Knows no setting by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from kvchat.errors import UsageError

_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "kib": 2**10, "m": 10**6, "mb": 10**6, "mib": 2**20}
_UNITS |= {"g": 10**9, "gb": 10**9, "gib": 2**30, "t": 10**12, "tb": 10**12, "tib": 2**40}
_LONGEST = 40
_TRUTHS = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)


class ByteSize(int):
    """A number of bytes, written `4GiB`, `512 MB` or `1000000`."""


def parse_bytes(text: str) -> ByteSize:
    """Bytes from `4GiB`, `512MB`, `1.5 g` or a plain number. Raises ValueError."""
    stripped = text.strip().lower().replace("_", "")
    unit = stripped.lstrip("0123456789.")
    number = stripped[: len(stripped) - len(unit)]
    if unit.strip() not in _UNITS or not number.replace(".", "", 1).isdecimal() or len(number) > _LONGEST:
        raise ValueError(f"{quoted(text)} is not a size such as 512MB or 4GiB")
    return ByteSize(float(number) * _UNITS[unit.strip()])


def quoted(value: object) -> str:
    """A value in a message: as Python writes it, of a long one the beginning."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end, or a number of 5,000 digits
        return f"this {type(value).__name__}"
    return text if len(text) <= 2 * _LONGEST else f"{text[: 2 * _LONGEST]}…"


@dataclass(frozen=True, slots=True)
class Origin:
    """A value as it was given, and where: `FILE:LINE`, a variable's name or a flag."""

    value: object
    where: str


def checked(origin: Origin, hint: Any, rules: Mapping[str, Any]) -> object:
    """The value as type `hint`. Raises UsageError, naming its origin, when it is not one or breaks the rules.

    `rules` may have `choices`, `min` and `max`, the word for `none`, and what other `words` stand for.
    """
    value = origin.value
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    value = rules["words"].get(value, value) if isinstance(value, str) and "words" in rules else value
    if (value is None or value == rules.get("none")) and type(None) in get_args(hint):
        return None
    try:
        value = _convert(value, hint if get_origin(hint) in (tuple, Mapping) else kinds[0])
    except (ValueError, TypeError) as error:
        raise UsageError(f"{origin.where}: {error}", "see kvchat --help") from error
    choices = rules.get("choices")
    if choices and value not in choices:
        raise UsageError(f"{origin.where}: {quoted(value)} is not one of {', '.join(choices)}")
    _check_bounds(origin.where, value, rules.get("min"), rules.get("max"))
    return value


def _check_bounds(where: str, value: object, low: float | None, high: float | None) -> None:
    if not isinstance(value, int | float):
        return
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UsageError(f"{where}: {quoted(value)} must be {bounds}")


def _convert(value: object, kind: Any) -> object:
    if kind == tuple[str, ...]:
        return tuple(_text(item) for item in ([value] if isinstance(value, str) else _items(value)))
    if get_origin(kind) is Mapping:
        return {name: _text(item) for name, item in _table(value).items()}
    if kind is bool:
        return value if isinstance(value, bool) else _truth(value)
    if kind is ByteSize:
        return parse_bytes(str(value))
    if kind is Path:
        return _path(value)
    return _text(value) if kind is str else _number(value, kind)


def _items(value: object) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{quoted(value)} is neither text nor a list of texts")
    return value


def _table(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{quoted(value)} is no table of names and texts")
    return value


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Path):
        raise ValueError(f"{quoted(value)} is not text")
    text = str(value)
    if "\0" in text:
        raise ValueError(f"{quoted(text)} contains a NUL character")
    return text


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError(f"{quoted(value)} is not a path")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"{quoted(value)}: there is no home folder") from None


def _number(value: object, kind: type[int] | type[float]) -> float:
    try:
        number = kind(str(value))
        if math.isfinite(number):
            return number
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{quoted(value)} is not {'a whole number' if kind is int else 'a number'}")


def _truth(value: object) -> bool:
    if str(value).lower() not in _TRUTHS:
        raise ValueError(f"{quoted(value)} is neither true nor false")
    return _TRUTHS[str(value).lower()]
