"""Anthropic's form of a conversation: messages of blocks read, an answer's blocks written. Asks nothing of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvchat.backends.base import Answer, FinishReason, Options, Role, Usage
from kvchat.server.reading import Fields, checked_text
from kvchat.server.said import Call, Said
from kvchat.server.sampling import options_of

_SKIPPED = ("thinking", "redacted_thinking")


def said_in(fields: Fields) -> list[Said]:
    """The system prompt and the messages; two of one role in a row are one. Raises RefusedError."""
    messages = fields.objects("messages")
    if not messages:
        fields.refuse("messages", "must have at least one message")
    system = _text_of(fields.raw("system"), "system")
    said = [Said(Role.SYSTEM, system)] if system else []
    for message in messages:
        role = message.choice("role", "user", "assistant", "system")
        if role is None:
            message.refuse("role", "must be there")
        for one in _said(message, Role(role)):
            _append(said, one)
    return said


def _append(said: list[Said], one: Said) -> None:
    """Add a message; behind a text of the user's another is its next paragraph."""
    if one.role is Role.USER and said and said[-1].role is Role.USER:
        said[-1] = replace(said[-1], text=f"{said[-1].text}\n\n{one.text}")
    else:
        said.append(one)


def _said(message: Fields, role: Role) -> list[Said]:
    content = message.raw("content")
    if content is None:
        message.refuse("content", "must be there")
    if not isinstance(content, list):
        return [Said(role, checked_text(content, "content"))]
    blocks = message.objects("content")
    if role is Role.ASSISTANT:
        return [_answer(blocks)]
    results = [_result(block) for block in blocks if block.text("type") == "tool_result"]
    texts = [_block_text(block) for block in blocks if block.text("type") != "tool_result"]
    return [*results, *([Said(role, "\n\n".join(texts))] if texts or not results else [])]


def _answer(blocks: Sequence[Fields]) -> Said:
    """What the model said in an earlier answer."""
    calls = tuple(
        Call(block.text("id"), block.text("name"), json.dumps(block.raw("input") or {}))
        for block in blocks
        if block.text("type") == "tool_use"
    )
    thoughts = "".join(block.text("thinking") for block in blocks if block.text("type") == "thinking")
    texts = [_block_text(block) for block in blocks if block.text("type") not in ("tool_use", *_SKIPPED)]
    return Said(Role.ASSISTANT, "".join(texts), thoughts, calls)


def _result(block: Fields) -> Said:
    return Said(Role.TOOL, _text_of(block.raw("content"), "content"), call_id=block.text("tool_use_id"))


def _text_of(value: object, path: str) -> str:
    """A text, or the texts of a list of blocks."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return checked_text(value, path)
    return "\n\n".join(_block_text(Fields(item, f"{path}[{number}]")) for number, item in enumerate(value))


def _block_text(block: Fields) -> str:
    kind = block.text("type")
    if kind != "text":
        block.refuse("type", f"is {kind[:40]!r}, and kvchat reads text alone")
    return block.text("text")


def asked_options(fields: Fields, defaults: Options) -> Options:
    """How it wants to be answered. Raises RefusedError."""
    if not fields.has("max_tokens"):
        fields.refuse("max_tokens", "must be there")
    fields.refuse_where_set(logprobs=False, top_logprobs=0)
    options = options_of(fields, defaults, limits=("max_tokens",), stop="stop_sequences")
    thinking = fields.inner("thinking").choice("type", "enabled", "disabled", "adaptive")
    return options if thinking is None else replace(options, think=thinking != "disabled")


def asked_tools(fields: Fields) -> tuple[str, frozenset[str]]:
    """The tools that may be called, as templates take them, and their names. Raises RefusedError."""
    choice = fields.inner("tool_choice").raw("type")
    if choice not in (None, "auto", "none"):
        fields.refuse("tool_choice", "must be auto or none: kvchat can't make a model call a tool")
    tools = fields.objects("tools")
    if not tools or choice == "none":
        return "", frozenset()
    if any(tool.text("type", "custom") != "custom" for tool in tools):
        fields.refuse("tools", "may only have tools of your own")
    functions = [
        {
            "name": tool.text("name"),
            "description": tool.text("description"),
            "parameters": tool.raw("input_schema") or {},
        }
        for tool in tools
    ]
    listed = [{"type": "function", "function": function} for function in functions]
    return json.dumps(listed, sort_keys=True), frozenset(tool.text("name") for tool in tools)


def text_block(text: str) -> dict[str, Any]:
    """A text as a block."""
    return {"type": "text", "text": text, "citations": None}


_ELSEWHERE = ("cache_creation", "inference_geo", "output_tokens_details", "server_tool_use", "service_tier")
"""What Anthropic counts beside, and nobody does here."""


def usage_json(usage: Usage) -> dict[str, int | None]:
    """An answer's tokens, in Anthropic's words: what was cached is counted beside the input."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        **dict.fromkeys(_ELSEWHERE),
    }


def ending(answer: Answer, calls: Sequence[Call]) -> dict[str, str | None]:
    """Why it ended."""
    reason = "end_turn"
    if answer.finish_reason is FinishReason.LENGTH:
        reason = "max_tokens"
    elif answer.stop_text:
        reason = "stop_sequence"
    return {"stop_reason": "tool_use" if calls else reason, "stop_sequence": answer.stop_text or None}


def tool_use(call: Call, *, has_input: bool = True) -> dict[str, Any]:
    """A call as a block; while it streams its input comes later."""
    return {
        "type": "tool_use",
        "id": call.id.replace("call_", "toolu_"),
        "name": call.name,
        "input": input_of(call) if has_input else {},
        "caller": {"type": "direct"},
    }


def input_of(call: Call) -> Any:
    """A call's arguments as an object; what is none stands under a name of its own."""
    try:
        parsed = json.loads(call.arguments or "{}")
    except ValueError:
        parsed = call.arguments
    return parsed if isinstance(parsed, dict) else {"value": parsed}
