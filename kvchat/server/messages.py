"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's chat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from starlette.responses import JSONResponse, Response

from kvchat.backends.base import DEFAULTS, Answer, Options, Text, Usage
from kvchat.server.anthropic_wording import (
    asked_options,
    asked_tools,
    ending,
    input_of,
    said_in,
    text_block,
    tool_use,
    usage_json,
)
from kvchat.server.calls import CallWatch
from kvchat.server.endpoint import Exchange
from kvchat.server.question import Question, question_of, reply_of
from kvchat.server.refusals import RefusedError, anthropic_form
from kvchat.server.service import served_name
from kvchat.server.streaming import answer_of, streamed
from kvchat.server.why import kvchat_json
from kvchat.server.wording import check_model, new_id, sse


async def messages(exchange: Exchange) -> Response:
    """Answer a conversation, at once or as it comes. Raises RefusedError."""
    service, fields = exchange.service, exchange.fields
    question = await _question(exchange, asked_options(fields, service.defaults))
    form = _Form(question, served_name(await service.info()))
    if fields.flag("stream"):
        return await streamed(service, question, form)
    return JSONResponse(form.whole(await answer_of(service, question)))


async def count_tokens(exchange: Exchange) -> Response:
    """How many tokens a conversation is. Raises RefusedError."""
    question = await _question(exchange, DEFAULTS)
    ids = await exchange.service.prompt(question.turns, DEFAULTS)
    return JSONResponse({"input_tokens": len(ids)})


async def _question(exchange: Exchange, options: Options) -> Question:
    service, fields = exchange.service, exchange.fields
    tools, names = asked_tools(fields)
    said = said_in(fields)
    info = await service.info()
    check_model(fields, info)
    return question_of(
        said,
        options,
        exchange.client,
        service.memory,
        tools=tools,
        tool_names=names,
        takes_tools=info.takes_tools,
    )


class _Form:
    """One request's answer, whole or as events; blocks are numbered as they begin."""

    def __init__(self, question: Question, model: str) -> None:
        self._question = question
        self._head = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": model,
            "stop_details": None,
            "container": None,
        }
        self._watch = CallWatch(question.tools)
        self._number = -1
        self._open = ""

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer as one object."""
        reply = reply_of(self._question, answer)
        thought = {"type": "thinking", "thinking": answer.reasoning, "signature": ""}
        content = [
            *([thought] if answer.reasoning else []),
            *([text_block(reply.text)] if reply.text or not reply.calls else []),
            *map(tool_use, reply.calls),
        ]
        about = {"usage": usage_json(answer.usage), "kvchat": kvchat_json(self._question, answer)}
        return {**self._head, "content": content, **ending(answer, reply.calls), **about}

    def begin(self, usage: Usage) -> Iterator[str]:
        message: dict[str, Any] = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None}
        yield _event("message_start", message=message | {"usage": usage_json(usage)})

    def tell(self, text: Text) -> Iterator[str]:
        if text.reasoning:
            yield from self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta("thinking_delta", thinking=text.text)
        else:
            yield from self._text(self._watch.feed(text.text) if self._question.tools else text.text)

    def end(self, answer: Answer) -> Iterator[str]:
        rest, calls = self._watch.finish() if self._question.tools else ("", ())
        yield from self._text(rest)
        if self._number < 0 and not calls:
            yield from self._block("text", text_block(""))
        for call in calls:
            yield from self._block(call.id, tool_use(call, has_input=False))
            yield self._delta("input_json_delta", partial_json=json.dumps(input_of(call)))
        yield from self._close()
        about = {"usage": usage_json(answer.usage), "kvchat": kvchat_json(self._question, answer)}
        yield _event("message_delta", delta=ending(answer, calls), **about)
        yield _event("message_stop")

    def fail(self, error: RefusedError) -> Iterator[str]:
        yield sse(anthropic_form(error), "error")

    def _text(self, text: str) -> Iterator[str]:
        if text:
            yield from self._block("text", text_block(""))
            yield self._delta("text_delta", text=text)

    def _block(self, name: str, block: dict[str, Any]) -> Iterator[str]:
        """Open a block, unless it is open; the one before is closed."""
        if self._open != name:
            yield from self._close()
            self._open, self._number = name, self._number + 1
            yield _event("content_block_start", index=self._number, content_block=block)

    def _close(self) -> Iterator[str]:
        if self._open == "thinking":
            yield self._delta("signature_delta", signature="")
        if self._open:
            yield _event("content_block_stop", index=self._number)
        self._open = ""

    def _delta(self, kind: str, **values: str) -> str:
        return _event("content_block_delta", index=self._number, delta={"type": kind, **values})


def _event(name: str, **values: Any) -> str:
    return sse({"type": name, **values}, name)
