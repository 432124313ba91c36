"""The backend's values as JSON and back: dataclasses by their field types. Knows no pipe.

The two sides may be of different versions: what one does not know it leaves out, what is not there has its default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from kvchat.backends import base
from kvchat.errors import ERROR_TYPES, KvchatError, is_memory_gone

EVENTS: Mapping[str, type[Any]] = {
    cls.__name__: cls for cls in (base.Prefilling, base.Text, base.Notice, base.Ahead, base.Done)
}
_PLAIN = frozenset((str, int, float, bool, NoneType))


def to_wire(value: Any) -> Any:
    """A JSON-ready form of a dataclass, or of a list or tuple of them."""
    kind: Any = type(value)
    if kind in _PLAIN:
        return value
    if kind in (list, tuple):  # ids, of which a long conversation has many, are all of one kind
        return list(value) if value and type(value[0]) in _PLAIN else [to_wire(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {name: to_wire(getattr(value, name)) for name in _names(kind)}
    return value


def from_wire(kind: Any, value: Any) -> Any:
    """The value of type `kind` that `to_wire` wrote. Raises KeyError, TypeError or ValueError if it is no such value."""
    return _reader(kind)(value)


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """What reads values of a type; found out once, for a long conversation has many of a few types."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType or (arguments and NoneType in arguments):
        return _reader(next(argument for argument in arguments if argument is not NoneType))
    if origin is tuple:
        read: Callable[[Any], Any] = tuple if arguments[0] in (int, str) else _tuple_of(_reader(arguments[0]))
    elif is_dataclass(kind):
        read = _fields_of(kind)
    elif isinstance(kind, type) and issubclass(kind, Enum):
        read = kind
    else:
        return lambda value: value
    return lambda value: None if value is None else read(value)


def _tuple_of(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: tuple(map(read, values))


def _fields_of(kind: Any) -> Callable[[Any], Any]:
    """What reads a dataclass."""
    readers = [(name, _reader(hint)) for name, hint in get_type_hints(kind).items()]
    return lambda value: kind(**{name: read(value[name]) for name, read in readers if name in value})


def error_to_wire(error: BaseException) -> dict[str, str]:
    """An error as it crosses the pipe; one of ours keeps its type and remedy."""
    if isinstance(error, KvchatError):
        return {"type": type(error).__name__, "message": error.message, "remedy": error.remedy}
    if is_memory_gone(error):
        remedy = "take a smaller model or a smaller --context"
        return {"type": "OutOfMemoryError", "message": "out of memory", "remedy": remedy}
    return {
        "type": "KvchatError",
        "message": f"internal error: {type(error).__name__}: {error}",
        "remedy": "",
    }


def error_from_wire(value: Mapping[str, str]) -> KvchatError:
    """The error that `error_to_wire` wrote."""
    return ERROR_TYPES.get(value["type"], KvchatError)(value["message"], value["remedy"])


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(item.name for item in fields(kind))
