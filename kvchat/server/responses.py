"""`/v1/responses`: OpenAI's responses, which may go on with an earlier one by its id. Kept in memory alone, within bounds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response

from kvchat.backends.base import Answer, Role, Text, Usage
from kvchat.server.calls import CallWatch
from kvchat.server.endpoint import Exchange
from kvchat.server.question import Question, Reply, question_of, reply_of
from kvchat.server.reading import Fields
from kvchat.server.refusals import RefusedError
from kvchat.server.responses_wording import (
    asked_options,
    asked_tools,
    call_item,
    finished,
    head_json,
    message_item,
    output_of,
    reasoning_item,
    said_in,
    text_part,
)
from kvchat.server.said import Call, Said
from kvchat.server.service import served_name
from kvchat.server.streaming import answer_of, streamed
from kvchat.server.why import kvchat_json
from kvchat.server.wording import check_model, new_id, sse

MAX_KEPT = 512
MAX_KEPT_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class _Kept:
    """A response, and the conversation up to its end, without instructions."""

    said: tuple[Said, ...]
    response: dict[str, Any]
    num_bytes: int


class Responses:
    """The endpoints, and the responses that were asked to be stored."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._num_bytes = 0

    async def create(self, exchange: Exchange) -> Response:
        """Answer, at once or as it comes. Raises RefusedError."""
        service, fields = exchange.service, exchange.fields
        options = asked_options(fields, service.defaults)
        tools, names = asked_tools(fields)
        conversation = (*self._before(fields), *said_in(fields))
        instructions = fields.text("instructions")
        said = ([Said(Role.SYSTEM, instructions)] if instructions else []) + list(conversation)
        info = await service.info()
        check_model(fields, info)
        question = question_of(
            said,
            options,
            exchange.client,
            service.memory,
            tools=tools,
            tool_names=names,
            takes_tools=info.takes_tools,
        )
        head = head_json(fields, question.options, served_name(info), int(time.time()))
        form = _Form(question, head, lambda reply, whole: self._keep(conversation, reply, whole))
        if fields.flag("stream"):
            return await streamed(service, question, form)
        return JSONResponse(form.whole(await answer_of(service, question)))

    async def get(self, exchange: Exchange) -> Response:
        """A response that is kept. Raises RefusedError."""
        return JSONResponse(self._found(exchange.path_params["name"]).response)

    async def delete(self, exchange: Exchange) -> Response:
        """Forget a response. Raises RefusedError."""
        name = exchange.path_params["name"]
        self._num_bytes -= self._found(name).num_bytes
        del self._kept[name]
        return JSONResponse({"id": name, "object": "response", "deleted": True})

    def _before(self, fields: Fields) -> tuple[Said, ...]:
        """The conversation that a request goes on with."""
        name = fields.text("previous_response_id")
        return self._found(name, "previous_response_id").said if name else ()

    def _found(self, name: str, param: str | None = None) -> _Kept:
        kept = self._kept.get(name)
        if kept is None:
            code = "previous_response_not_found" if param else None
            message = f"no response {name[:60]!r} is kept here"
            raise RefusedError(400 if param else 404, message, param=param, code=code)
        return kept

    def _keep(self, conversation: tuple[Said, ...], reply: Reply, whole: dict[str, Any]) -> None:
        if not whole["store"]:
            return
        said = (*conversation, Said(Role.ASSISTANT, reply.text, calls=reply.calls))
        num_bytes = sum(len(one.text) for one in said) + 1000
        self._kept[whole["id"]] = _Kept(said, whole, num_bytes)
        self._num_bytes += num_bytes
        while len(self._kept) > MAX_KEPT or self._num_bytes > MAX_KEPT_BYTES:
            self._num_bytes -= self._kept.popitem(last=False)[1].num_bytes


class _Form:
    """One request's response, whole or as events. `keep` is called with what came of it."""

    def __init__(
        self, question: Question, head: dict[str, Any], keep: Callable[[Reply, dict[str, Any]], None]
    ) -> None:
        self._question = question
        self._head = head
        self._keep = keep
        self._watch = CallWatch(question.tools)
        self._number = 0  # of the next event
        self._output: list[dict[str, Any]] = []
        self._open = ""
        self._name = ""
        self._text = ""

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer as one object."""
        reply = reply_of(self._question, answer)
        return self._finished(answer, reply, output_of(reply, answer.reasoning))

    def begin(self, usage: Usage) -> Iterator[str]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._head)

    def tell(self, text: Text) -> Iterator[str]:
        if text.reasoning:
            yield from self._say("reasoning", text.text)
        else:
            yield from self._say(
                "message", self._watch.feed(text.text) if self._question.tools else text.text
            )

    def end(self, answer: Answer) -> Iterator[str]:
        rest, calls = self._watch.finish() if self._question.tools else ("", ())
        yield from self._say("message", rest)
        if not calls and self._open != "message":
            yield from self._begin_item("message")
        yield from self._close()
        for call in calls:
            yield from self._call(call)
        whole = self._finished(answer, reply_of(self._question, answer), self._output)
        yield self._event(f"response.{whole['status']}", response=whole)

    def fail(self, error: RefusedError) -> Iterator[str]:
        failure = {"code": error.code or "server_error", "message": error.message}
        yield self._event("response.failed", response={**self._head, "status": "failed", "error": failure})
        yield self._event("error", **failure, param=error.param)

    def _finished(self, answer: Answer, reply: Reply, output: list[dict[str, Any]]) -> dict[str, Any]:
        whole = finished(self._head, answer, output) | {"kvchat": kvchat_json(self._question, answer)}
        self._keep(reply, whole)
        return whole

    def _say(self, kind: str, text: str) -> Iterator[str]:
        """More text of a message or of a reasoning."""
        if not text:
            return
        if self._open != kind:
            yield from self._begin_item(kind)
        self._text += text
        name = "output_text" if kind == "message" else "reasoning_text"
        more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        yield self._event(f"response.{name}.delta", **self._place(), delta=text, **more)

    def _begin_item(self, kind: str) -> Iterator[str]:
        yield from self._close()
        self._open, self._text = kind, ""
        self._name = new_id("msg_" if kind == "message" else "rs_")
        item = (message_item if kind == "message" else reasoning_item)(self._name, None)
        yield self._event("response.output_item.added", output_index=len(self._output), item=item)
        yield self._event("response.content_part.added", **self._place(), part=self._part(""))

    def _close(self) -> Iterator[str]:
        """End the item that is open."""
        if not self._open:
            return
        kind, name = self._open, "output_text" if self._open == "message" else "reasoning_text"
        more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        yield self._event(f"response.{name}.done", **self._place(), text=self._text, **more)
        yield self._event("response.content_part.done", **self._place(), part=self._part(self._text))
        item = (message_item if kind == "message" else reasoning_item)(self._name, self._text)
        yield self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open = ""

    def _call(self, call: Call) -> Iterator[str]:
        name, index = new_id("fc_"), len(self._output)
        place = {"item_id": name, "output_index": index}
        begun, item = call_item(name, call, is_begun=True), call_item(name, call)
        yield self._event("response.output_item.added", output_index=index, item=begun)
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event(
            "response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments
        )
        yield self._event("response.output_item.done", output_index=index, item=item)
        self._output.append(item)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._name, "output_index": len(self._output), "content_index": 0}

    def _part(self, text: str) -> dict[str, Any]:
        return text_part(text) if self._open == "message" else {"type": "reasoning_text", "text": text}

    def _event(self, name: str, /, **values: Any) -> str:
        number, self._number = self._number, self._number + 1
        return sse({"type": name, "sequence_number": number, **values}, name)
