"""`/v1/chat/completions`: OpenAI's chat."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response

from kvchat.backends.base import Answer, ModelInfo, Text, Usage
from kvchat.server.calls import CallWatch
from kvchat.server.endpoint import Exchange
from kvchat.server.question import Question, question_of, reply_of
from kvchat.server.reading import Fields
from kvchat.server.refusals import RefusedError, openai_form
from kvchat.server.sampling import options_of
from kvchat.server.scores import ToldScores, asked_of_chat, chat_json
from kvchat.server.service import served_name
from kvchat.server.streaming import ToldIds, answer_of, streamed
from kvchat.server.why import kvchat_json
from kvchat.server.wording import (
    DONE,
    calls_json,
    check_model,
    finish_of,
    messages_of,
    new_id,
    sse,
    tools_of,
    usage_json,
)

_LIMITS = ("max_completion_tokens", "max_tokens")


async def chat_completions(exchange: Exchange) -> Response:
    """Answer a chat, at once or as it comes. Raises RefusedError."""
    service, fields = exchange.service, exchange.fields
    options = options_of(fields, service.defaults, limits=_LIMITS, top_logprobs=asked_of_chat(fields))
    tools, names = tools_of(fields)
    said = messages_of(fields)
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
    form = _Form(question, fields, info)
    if fields.flag("stream"):
        return await streamed(service, question, form)
    return JSONResponse(form.whole(await answer_of(service, question)))


class _Form:
    """One request's answer, whole or as chunks."""

    def __init__(self, question: Question, fields: Fields, info: ModelInfo) -> None:
        self._question = question
        self._head = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": served_name(info)}
        self._has_usage = fields.inner("stream_options").flag("include_usage")
        self._is_counting = fields.inner("stream_options").flag("continuous_usage_stats")
        self._usage = Usage(0, 0, 0)
        self._has_ids = fields.flag("return_token_ids")
        self._watch = CallWatch(question.tools)
        self._ids = ToldIds(self._has_ids)
        self._scores = ToldScores(are_wanted=question.options.top_logprobs is not None)

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer as one object."""
        reply = reply_of(self._question, answer)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": reply.text,
            "refusal": None,
            "annotations": [],
        }
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if reply.calls:
            message |= {"content": reply.text or None, "tool_calls": calls_json(reply.calls)}
        finish = finish_of(answer, reply.calls)
        scores = chat_json(answer.scores) if self._scores.are_wanted else None
        choice = {"index": 0, "message": message, "logprobs": scores, "finish_reason": finish}
        choice |= {"token_ids": answer.completion} if self._has_ids else {}
        head = {**self._head, "object": "chat.completion", "choices": [choice]}
        return head | {"usage": usage_json(answer.usage)} | self._about(answer)

    def begin(self, usage: Usage) -> Iterator[str]:
        self._usage = usage
        yield self._chunk({"role": "assistant", "content": ""})

    def tell(self, text: Text) -> Iterator[str]:
        self._ids.add(text.ids)
        self._scores.add(text)
        if text.reasoning:
            yield self._chunk({"reasoning_content": text.text})
        elif said := self._watch.feed(text.text) if self._question.tools else text.text:
            yield self._chunk({"content": said})

    def end(self, answer: Answer) -> Iterator[str]:
        rest, calls = self._watch.finish() if self._question.tools else ("", ())
        self._ids.rest(answer)
        self._scores.rest(answer)
        if rest:
            yield self._chunk({"content": rest})
        if calls:
            yield self._chunk({"tool_calls": calls_json(calls, is_delta=True)})
        finish, about = finish_of(answer, calls), self._about(answer)
        yield self._chunk({}, finish, {} if self._has_usage else about)
        if self._has_usage:
            yield self._event([], {"usage": usage_json(answer.usage)} | about)
        yield DONE

    def fail(self, error: RefusedError) -> Iterator[str]:
        yield sse(openai_form(error))
        yield DONE

    def _about(self, answer: Answer) -> dict[str, Any]:
        """What stands beside the choices."""
        ids = {"prompt_token_ids": answer.prompt} if self._has_ids else {}
        return {"kvchat": kvchat_json(self._question, answer), **ids}

    def _chunk(
        self, delta: dict[str, Any], finish: str | None = None, more: dict[str, Any] | None = None
    ) -> str:
        told = self._scores.take()
        scores = chat_json(told) if told else None
        choice = {"index": 0, "delta": delta, "logprobs": scores, "finish_reason": finish}
        choice |= self._ids.json()
        return self._event([choice], self._usage_so_far() | (more or {}))

    def _usage_so_far(self) -> dict[str, Any]:
        """What a chunk tells of the tokens: nothing before the last, unless it is asked to."""
        if not self._has_usage:
            return {}
        usage = replace(self._usage, completion_tokens=self._ids.num_generated)
        return {"usage": usage_json(usage) if self._is_counting else None}

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> str:
        return sse({**self._head, "object": "chat.completion.chunk", "choices": choices, **more})
