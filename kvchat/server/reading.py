"""A request's JSON, read field by field: each value has its type and bounds, or the request is refused. Knows no protocol."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from kvchat.server.refusals import RefusedError

MAX_TEXT_ITEMS = 100_000
"""Most entries of any list."""


class Fields:
    """A JSON object; a field that is null is not there. Every method raises RefusedError for a value of another kind."""

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, dict):
            raise RefusedError(400, f"{path or 'the body'} must be a JSON object", param=path or None)
        self._value: dict[str, Any] = value
        self._path = path

    @classmethod
    def of_body(cls, body: bytes) -> Fields:
        """What a request's body says. Raises RefusedError unless it is an object in valid JSON."""
        try:
            value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
        except UnicodeDecodeError:
            raise RefusedError(400, "the body is not UTF-8") from None
        except RecursionError:
            raise RefusedError(400, "the body is nested too deeply") from None
        except ValueError as error:
            raise RefusedError(400, f"the body is not JSON: {error}") from None
        return cls(value)

    def has(self, name: str) -> bool:
        """Whether something stands there."""
        return self._value.get(name) is not None

    def raw(self, name: str) -> Any:
        """What stands there, of any kind; None if nothing does."""
        return self._value.get(name)

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        value = self.raw(name)
        return default if value is None else checked_text(value, self._at(name))

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.raw(name)
        if value is not None and type(value) is not bool:
            self.refuse(name, "must be true or false")
        return default if value is None else value

    def whole(self, name: str, least: int, most: int = 2**53) -> int | None:
        """A whole number in [least, most]; None if it is not there."""
        value = self.raw(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (type(value) is not int or not least <= value <= most):
            self.refuse(name, f"must be a whole number from {least} to {most}")
        return value

    def number(self, name: str, least: float, most: float = 1e9) -> float | None:
        """A number in [least, most]; None if it is not there."""
        value = self.raw(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
            self.refuse(name, f"must be a number from {least:g} to {most:g}")
        return float(value)

    def choice(self, name: str, *known: str) -> str | None:
        """One of some words; None if it is not there."""
        value = self.raw(name)
        if value is not None and value not in known:
            self.refuse(name, f"must be one of {', '.join(known)}")
        return None if value is None else str(value)

    def items(self, name: str) -> list[Any]:
        """A list; empty if it is not there."""
        value = self.raw(name)
        if value is not None and not isinstance(value, list):
            self.refuse(name, "must be a list")
        if value is not None and len(value) > MAX_TEXT_ITEMS:
            self.refuse(name, f"has more than {MAX_TEXT_ITEMS} entries")
        return value or []

    def objects(self, name: str) -> list[Fields]:
        """A list of objects; empty if it is not there."""
        return [Fields(item, f"{self._at(name)}[{number}]") for number, item in enumerate(self.items(name))]

    def texts(self, name: str, most: int = 16) -> tuple[str, ...]:
        """One text or a list of them, none empty; none if it is not there."""
        value = self.raw(name)
        values = [value] if isinstance(value, str) else self.items(name)
        if len(values) > most:
            self.refuse(name, f"has more than {most} entries")
        texts = tuple(checked_text(one, self._at(name)) for one in values)
        if not all(texts):
            self.refuse(name, "has an empty text")
        return texts

    def inner(self, name: str) -> Fields:
        """An object; an empty one if it is not there."""
        return Fields(self._value.get(name) or {}, self._at(name))

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise the RefusedError that blames a field."""
        raise RefusedError(400, f"{self._at(name)} {why}", param=self._at(name))

    def refuse_where_set(self, **harmless: object) -> None:
        """Raise RefusedError for a field that asks for what is not done: one that is there and none of its harmless values."""
        for name, values in harmless.items():
            value = self.raw(name)
            is_harmless = value in values if isinstance(values, tuple) else value == values
            if value is not None and not is_harmless:
                self.refuse(name, "asks for something that kvchat does not do")

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def checked_text(value: object, path: str) -> str:
    """A text that can be encoded. Raises RefusedError."""
    if not isinstance(value, str):
        raise RefusedError(400, f"{path} must be a text", param=path)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RefusedError(400, f"{path} has half a character in it", param=path) from None
    return value


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")
