"""A conversation as the protocols have it in common, and as the backend's turns: tools, calls and results among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from kvchat.backends.base import Role, Turn
from kvchat.server.memory import Memory


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool: `arguments` is JSON, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Said:
    """One message. `calls` are the model's, `call_id` and `name` those of the call that a tool's result answers."""

    role: Role
    text: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""
    name: str = ""

    def turn(self, *, takes_tools: bool) -> Turn:
        """The same for a template; for one that knows no tools, as text in the form that most models were taught."""
        if self.role is Role.TOOL:
            if not takes_tools:
                return Turn(Role.USER, f"<tool_response>\n{self.text}\n</tool_response>")
            about = {"tool_call_id": self.call_id} | ({"name": self.name} if self.name else {})
            return Turn(Role.TOOL, self.text, extra=json.dumps(about))
        if not self.calls:
            return Turn(self.role, self.text, self.reasoning)
        if takes_tools:
            return Turn(
                self.role,
                self.text,
                self.reasoning,
                extra=json.dumps({"tool_calls": _calls_json(self.calls)}),
            )
        return Turn(
            self.role,
            "\n".join([*([self.text] if self.text else []), *map(_as_text, self.calls)]),
            self.reasoning,
        )


def keys_of(said: Sequence[Said]) -> list[bytes]:
    """For each message a key of it and all before it; equal keys belong to equal conversations.

    What the model said counts without the white space around it, which clients drop, and its calls without their ids.
    """
    keys: list[bytes] = []
    key = b""
    for one in said:
        is_answer = one.role is Role.ASSISTANT
        calls = [[call.name, _canonical(call.arguments)] for call in one.calls]
        about = json.dumps([str(one.role), one.text.strip() if is_answer else one.text, calls])
        key = blake2b(key + about.encode(), digest_size=24).digest()
        keys.append(key)
    return keys


def turns_of(
    said: Sequence[Said], memory: Memory, *, tools: str = "", takes_tools: bool = False
) -> tuple[Turn, ...]:
    """The turns of a conversation, its earlier answers with the very ids that they were generated as, where these are
    remembered."""
    turns: list[Turn] = []
    for one, key in zip(said, keys_of(said), strict=True):
        kept = memory.find(key) if one.role is Role.ASSISTANT else None
        turns.append(kept.turn() if kept else one.turn(takes_tools=takes_tools))
    if tools:
        turns = _with_tools(turns, tools, takes_tools=takes_tools)
    return tuple(turns)


def with_one_system(said: Sequence[Said]) -> tuple[Said, ...]:
    """The conversation with the system messages at its beginning as one."""
    count = next((at for at, one in enumerate(said) if one.role is not Role.SYSTEM), len(said))
    if count < 2:
        return tuple(said)
    return (Said(Role.SYSTEM, "\n\n".join(one.text for one in said[:count])), *said[count:])


def _with_tools(turns: list[Turn], tools: str, *, takes_tools: bool) -> list[Turn]:
    """The turns of a conversation in which `tools` may be called; where the template doesn't say so, its system prompt does."""
    if takes_tools:
        return [replace(turns[0], tools=tools), *turns[1:]]
    listed = "\n".join(json.dumps(tool) for tool in json.loads(tools))
    system = _PREAMBLE.format(tools=listed)
    if turns[0].role is Role.SYSTEM:
        return [Turn(Role.SYSTEM, f"{turns[0].text}\n\n{system}"), *turns[1:]]
    return [Turn(Role.SYSTEM, system), *turns]


_PREAMBLE = """\
You may call one or more functions to help the user. These are the functions:
<tools>
{tools}
</tools>
To call one, answer with a JSON object with its name and arguments within <tool_call></tool_call> tags:
<tool_call>
{{"name": "...", "arguments": {{}}}}
</tool_call>"""
"""The form of Hermes, which Qwen and many others were taught."""


def _calls_json(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Calls as templates take them, their arguments as an object."""
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": _parsed(call.arguments)},
        }
        for call in calls
    ]


def _as_text(call: Call) -> str:
    return (
        f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': _parsed(call.arguments)})}\n</tool_call>"
    )


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments


def _canonical(arguments: str) -> str:
    return json.dumps(_parsed(arguments), sort_keys=True)
