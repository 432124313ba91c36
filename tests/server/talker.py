"""The scripted backend as the server wants one: what it is told to say, it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kvchat.backends.base import DEFAULTS, Options, Turn
from tests.scripted import ScriptedBackend

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "what it is like outside", "parameters": WEATHER},
}


class Talker(ScriptedBackend):
    def prompt(self, history: Sequence[Turn], options: Options = DEFAULTS) -> tuple[int, ...]:
        return tuple(range(sum(len(turn.text.split()) for turn in history)))


def marked(city: str) -> str:
    """A call as Hermes writes it."""
    return f"<tool_call>\n{json.dumps({'name': 'weather', 'arguments': {'city': city}})}\n</tool_call>"


def saying(text: str) -> str:
    """A message that makes it say a text."""
    return "say " + text.replace("\n", "\\n")
