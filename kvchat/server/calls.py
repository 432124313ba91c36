"""Calls of tools in what a model says: told from its text as it comes, in the forms that the known families write.

`<tool_call>{"name", "arguments"}</tool_call>` anywhere (Hermes, Qwen), an object with `name` and `parameters` that is
all of it (Llama 3), or a list of objects with `name` and `arguments` that is (Mistral). Anything else is text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Container, Sequence
from typing import Any

from kvchat.server.said import Call

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MARKED = re.compile(rf"{_OPEN}\s*(.*?)\s*(?:{_CLOSE}|$)", re.DOTALL)
_BEFORE = ("[TOOL_CALLS]", "<|python_tag|>")
"""What may stand before a list or an object of calls, where it is no control token."""


class CallWatch:
    """One answer's text: lets through what is text for sure, and tells at the end which calls it made."""

    def __init__(self, tools: Container[str]) -> None:
        self._tools = tools
        self._all = ""
        self._num_shown = 0

    def feed(self, text: str) -> str:
        """What of the text so far is no call for sure, and was not let through before."""
        self._all += text
        return self._show(self._sure())

    def finish(self) -> tuple[str, tuple[Call, ...]]:
        """What is left of the text, and the calls."""
        calls, end = self._found()
        return self._show(end), calls

    def _show(self, end: int) -> str:
        start, self._num_shown = self._num_shown, max(self._num_shown, end)
        return self._all[start:end]

    def _sure(self) -> int:
        """How many characters can't be part of a call."""
        begun = self._all.lstrip()
        if (
            not begun
            or begun[0] in "{["
            or any(mark.startswith(begun) or begun.startswith(mark) for mark in _BEFORE)
        ):
            return 0
        place = self._all.find(_OPEN)
        return place if place >= 0 else len(self._all) - _held(self._all)

    def _found(self) -> tuple[tuple[Call, ...], int]:
        """The calls, and where the text before them ends."""
        place = self._all.find(_OPEN)
        if place >= 0:
            marked = [_parsed(found) for found in _MARKED.findall(self._all[place:])]
            calls = [call for parsed in marked for call in self._calls_in(parsed)]
            return (tuple(calls), place) if calls and all(marked) else ((), len(self._all))
        rest = self._all.strip()
        for mark in _BEFORE:
            rest = rest.removeprefix(mark).lstrip()
        calls = self._calls_in(_parsed(rest))
        return (tuple(calls), 0) if calls else ((), len(self._all))

    def _calls_in(self, parsed: Any) -> list[Call]:
        """The calls of known tools; none if anything else is among them."""
        rows: Sequence[Any] = parsed if isinstance(parsed, list) else [parsed]
        calls: list[Call] = []
        for row in rows:
            name = row.get("name") if isinstance(row, dict) else None
            if not isinstance(name, str) or name not in self._tools:
                return []
            arguments = row.get("arguments", row.get("parameters", {}))
            said = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append(Call(f"call_{secrets.token_hex(12)}", name, said))
        return calls


def _held(text: str) -> int:
    """How many characters at the end may begin the mark of a call."""
    sizes = range(min(len(_OPEN) - 1, len(text)), 0, -1)
    return next((size for size in sizes if _OPEN.startswith(text[-size:])), 0)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
