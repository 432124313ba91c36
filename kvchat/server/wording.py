"""Pieces that OpenAI's endpoints share: messages read, tools read, usage written, events framed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from kvchat.backends.base import Answer, FinishReason, ModelInfo, Role, Usage
from kvchat.server.reading import Fields, checked_text
from kvchat.server.refusals import RefusedError
from kvchat.server.said import Call, Said
from kvchat.server.service import served_name

DONE = "data: [DONE]\n\n"
ALIASES = ("default", "kvchat")
"""Names that stand for the model, whichever it is."""
_ROLES: Mapping[str, Role] = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def new_id(prefix: str) -> str:
    """A name that nobody guesses."""
    return f"{prefix}{secrets.token_hex(16)}"


def sse(event: Mapping[str, Any], name: str = "") -> str:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(event, separators=(',', ':'))}\n\n"


def check_model(fields: Fields, info: ModelInfo, *, is_needed: bool = True) -> None:
    """Raise RefusedError for a model that is not served, or none where the protocol wants one."""
    if not fields.has("model"):
        if is_needed:
            fields.refuse("model", f"must be there, such as {ALIASES[0]!r}")
        return
    name, served = fields.text("model"), served_name(info)
    if name not in (*ALIASES, served):
        message = f"there is no model {name[:80]!r} here, only {served!r}"
        raise RefusedError(404, message, param="model", code="model_not_found")


def content_text(value: object, path: str) -> str:
    """A message's content: a text, or a list of parts that are texts. Raises RefusedError for other parts."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return checked_text(value, path)
    texts: list[str] = []
    for number, item in enumerate(value):
        part = Fields(item, f"{path}[{number}]")
        kind = part.text("type", "text")
        if kind not in _TEXT_PARTS:
            part.refuse("type", f"is {kind[:40]!r}, and kvchat reads text alone")
        texts.append(part.text("refusal" if kind == "refusal" else "text"))
    return "".join(texts)


def messages_of(fields: Fields) -> list[Said]:
    """The messages of a chat. Raises RefusedError."""
    messages = fields.objects("messages")
    if not messages:
        fields.refuse("messages", "must have at least one message")
    said = [_message(message) for message in messages]
    if all(one.role is Role.SYSTEM for one in said):
        fields.refuse("messages", "must have a message that is not the system's")
    return said


def _message(message: Fields) -> Said:
    role = message.choice("role", *_ROLES)
    if role is None:
        message.refuse("role", "must be there")
    return Said(
        _ROLES[role],
        content_text(message.raw("content"), "content"),
        message.text("reasoning_content") or message.text("reasoning"),
        tuple(_call(call.text("id"), call.inner("function")) for call in message.objects("tool_calls")),
        message.text("tool_call_id"),
        message.text("name"),
    )


def _call(number: str, function: Fields) -> Call:
    arguments = function.raw("arguments")
    said = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return Call(number, function.text("name"), checked_text(said, "arguments"))


def tools_of(fields: Fields) -> tuple[str, frozenset[str]]:
    """The tools that may be called, as JSON, and their names; none where none are to be. Raises RefusedError."""
    tools = fields.items("tools")
    choice = fields.raw("tool_choice")
    if not tools or choice == "none":
        return "", frozenset()
    if choice not in (None, "auto"):
        fields.refuse("tool_choice", "must be auto or none: kvchat can't make a model call a tool")
    functions = [tool.inner("function") for tool in fields.objects("tools")]
    names = frozenset(function.text("name") for function in functions)
    if "" in names:
        fields.refuse("tools", "must all be functions with a name")
    return json.dumps(tools, sort_keys=True), names


def calls_json(calls: tuple[Call, ...], *, is_delta: bool = False) -> list[dict[str, Any]]:
    """Calls as a chat's message has them."""
    return [
        ({"index": number} if is_delta else {})
        | {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for number, call in enumerate(calls)
    ]


def finish_of(answer: Answer, calls: tuple[Call, ...] = ()) -> str:
    """Why it ended, in OpenAI's words."""
    if calls:
        return "tool_calls"
    return "length" if answer.finish_reason is FinishReason.LENGTH else "stop"


def usage_json(usage: Usage) -> dict[str, Any]:
    """An answer's tokens, in OpenAI's words."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
