"""The form of OpenAI's responses: items read, an answer's items written. Asks nothing of a model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kvchat.backends.base import Answer, FinishReason, Options, Role, Usage
from kvchat.server.question import Reply
from kvchat.server.reading import Fields, checked_text
from kvchat.server.said import Call, Said
from kvchat.server.sampling import options_of
from kvchat.server.wording import content_text, new_id

_ROLES = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}


def said_in(fields: Fields) -> list[Said]:
    """The messages that a request adds to the conversation. Raises RefusedError."""
    value = fields.raw("input")
    if not value:
        fields.refuse("input", "must be a text or a list of items")
    if isinstance(value, str):
        return [Said(Role.USER, checked_text(value, "input"))]
    said: list[Said] = []
    for item in fields.objects("input"):
        kind = item.text("type", "message")
        if kind == "message":
            said.append(_message(item))
        elif kind == "function_call":
            _add_call(said, Call(item.text("call_id"), item.text("name"), item.text("arguments", "{}")))
        elif kind == "function_call_output":
            text = content_text(item.raw("output"), "output")
            said.append(Said(Role.TOOL, text, call_id=item.text("call_id")))
        elif kind != "reasoning":  # what the model thought is remembered with its answer
            item.refuse("type", f"is {kind[:40]!r}, which kvchat does not do")
    if not any(one.role is not Role.SYSTEM for one in said):
        fields.refuse("input", "must have a message that is not the system's")
    return said


def _message(item: Fields) -> Said:
    role = item.choice("role", *_ROLES)
    if role is None:
        item.refuse("role", "must be there")
    return Said(_ROLES[role], content_text(item.raw("content"), "content"))


def _add_call(said: list[Said], call: Call) -> None:
    """A call belongs to the answer before it, if one stands there."""
    if said and said[-1].role is Role.ASSISTANT:
        said[-1] = replace(said[-1], calls=(*said[-1].calls, call))
    else:
        said.append(Said(Role.ASSISTANT, "", calls=(call,)))


def asked_options(fields: Fields, defaults: Options) -> Options:
    """How it wants to be answered. Raises RefusedError."""
    fields.refuse_where_set(
        background=False, conversation=(), prompt=(), max_tool_calls=(), logprobs=False, top_logprobs=0
    )
    if "message.output_text.logprobs" in fields.items("include"):
        fields.refuse("include", "asks for logprobs, which only chats and completions have here")
    if fields.inner("text").inner("format").raw("type") not in (None, "text"):
        fields.refuse("text", "must have the format text: kvchat can't hold an answer to a form")
    options = options_of(fields, defaults, limits=("max_output_tokens",))
    effort = fields.inner("reasoning").raw("effort")
    return replace(options, think=effort != "none") if isinstance(effort, str) else options


def asked_tools(fields: Fields) -> tuple[str, frozenset[str]]:
    """The tools that may be called, as templates take them, and their names. Raises RefusedError."""
    tools, choice = fields.objects("tools"), fields.raw("tool_choice")
    if choice not in (None, "auto", "none"):
        fields.refuse("tool_choice", "must be auto or none: kvchat can't make a model call a tool")
    if not tools or choice == "none":
        return "", frozenset()
    if any(tool.raw("type") != "function" or not tool.text("name") for tool in tools):
        fields.refuse("tools", "may only have functions with a name")
    functions = [
        {
            "name": tool.text("name"),
            "description": tool.text("description"),
            "parameters": tool.raw("parameters"),
        }
        for tool in tools
    ]
    listed = [{"type": "function", "function": function} for function in functions]
    return json.dumps(listed, sort_keys=True), frozenset(tool.text("name") for tool in tools)


def head_json(fields: Fields, options: Options, model: str, created: int) -> dict[str, Any]:
    """What a response says of its request."""
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "frequency_penalty": 0.0,
        "incomplete_details": None,
        "instructions": fields.raw("instructions"),
        "max_output_tokens": fields.raw("max_output_tokens"),
        "max_tool_calls": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
        "presence_penalty": 0.0,
        "previous_response_id": fields.raw("previous_response_id"),
        "prompt_cache_key": fields.raw("prompt_cache_key"),
        "reasoning": {"effort": fields.inner("reasoning").raw("effort"), "summary": None},
        "safety_identifier": fields.raw("safety_identifier"),
        "service_tier": "default",
        "store": fields.flag("store", True),
        "temperature": 1.0 if options.temperature is None else options.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": fields.raw("tool_choice") or "auto",
        "tools": [
            {"parameters": None, "strict": None, "description": None, **tool}
            for tool in fields.items("tools")
        ],
        "top_logprobs": 0,
        "top_p": 1.0 if options.top_p is None else options.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": fields.raw("user"),
        "metadata": fields.raw("metadata") or {},
    }


def finished(head: dict[str, Any], answer: Answer, output: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The whole response."""
    is_cut = answer.finish_reason is FinishReason.LENGTH
    ending: dict[str, Any] = {"status": "incomplete" if is_cut else "completed", "output": list(output)}
    if is_cut:
        ending["incomplete_details"] = {"reason": "max_output_tokens"}
    else:
        ending["completed_at"] = int(time.time())
    return {**head, **ending, "usage": usage_json(answer.usage, has_reasoning=bool(answer.reasoning))}


def output_of(reply: Reply, reasoning: str) -> list[dict[str, Any]]:
    """An answer's items."""
    return [
        *([reasoning_item(new_id("rs_"), reasoning)] if reasoning else []),
        *([message_item(new_id("msg_"), reply.text)] if reply.text or not reply.calls else []),
        *(call_item(new_id("fc_"), call) for call in reply.calls),
    ]


def message_item(name: str, text: str | None) -> dict[str, Any]:
    """A message; None for one whose text is still to come."""
    content = [] if text is None else [text_part(text)]
    status = "in_progress" if text is None else "completed"
    return {"id": name, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str) -> dict[str, Any]:
    """The text of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reasoning_item(name: str, text: str | None) -> dict[str, Any]:
    """What the model thought first; None for what is still to come."""
    content = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return {"id": name, "type": "reasoning", "summary": [], "content": content}


def call_item(name: str, call: Call, *, is_begun: bool = False) -> dict[str, Any]:
    """A call; of one that has only begun the arguments are still to come."""
    arguments, status = ("", "in_progress") if is_begun else (call.arguments, "completed")
    item = {"id": name, "type": "function_call", "call_id": call.id, "name": call.name}
    return item | {"arguments": arguments, "status": status}


def usage_json(usage: Usage, *, has_reasoning: bool) -> dict[str, Any]:
    """An answer's tokens, in the words of responses; how many of them were reasoning is not counted."""
    details = {} if has_reasoning else {"output_tokens_details": {"reasoning_tokens": 0}}
    return details | {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
