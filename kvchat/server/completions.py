"""`/v1/completions`: a bare prompt, of text or of token ids, gone on with as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response

from kvchat.backends.base import Answer, ModelInfo, Text, Usage
from kvchat.server.endpoint import Exchange
from kvchat.server.question import Question, bare_question
from kvchat.server.reading import Fields, checked_text
from kvchat.server.refusals import RefusedError, openai_form
from kvchat.server.sampling import options_of
from kvchat.server.scores import ToldScores, asked_of_completion, completion_json
from kvchat.server.service import served_name
from kvchat.server.streaming import ToldIds, answer_of, streamed
from kvchat.server.why import kvchat_json
from kvchat.server.wording import DONE, check_model, finish_of, new_id, sse, usage_json

MAX_TOKENS = 16
"""What OpenAI answers where nothing is said."""


async def completions(exchange: Exchange) -> Response:
    """Go on with a prompt, at once or as it comes. Raises RefusedError."""
    service, fields = exchange.service, exchange.fields
    fields.refuse_where_set(echo=False, suffix="")
    options = options_of(
        fields,
        service.defaults,
        limits=("max_tokens",),
        max_tokens=MAX_TOKENS,
        top_logprobs=asked_of_completion(fields),
    )
    prompt = prompt_of(fields)
    info = await service.info()
    check_model(fields, info)
    _check_stops(fields, info)
    question = bare_question(prompt, options, exchange.client, service.beginnings)
    form = _Form(question, fields, info)
    if fields.flag("stream"):
        return await streamed(service, question, form)
    return JSONResponse(form.whole(await answer_of(service, question)))


def prompt_of(fields: Fields) -> str | tuple[int, ...]:
    """The prompt: a text or ids, or a list with one of these. Raises RefusedError."""
    value = fields.raw("prompt")
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], int):
        value = value[0]
    if not value:
        fields.refuse("prompt", "must be a text or a list of token ids")
    if isinstance(value, str):
        return checked_text(value, "prompt")
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 2**29 for one in value):
        fields.refuse("prompt", "must be one text or one list of token ids")
    return tuple(value)


def _check_stops(fields: Fields, info: ModelInfo) -> None:
    """Raise RefusedError where an answer is to end at other tokens than the model's own."""
    if not set(map(repr, fields.items("stop_token_ids"))) <= set(map(repr, info.stop_ids)):
        fields.refuse("stop_token_ids", "may only name the tokens that end the model's answers anyway")


class _Form:
    """One request's answer, whole or as chunks."""

    def __init__(self, question: Question, fields: Fields, info: ModelInfo) -> None:
        self._question = question
        self._head = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": served_name(info),
        }
        self._has_ids = fields.flag("return_token_ids")
        self._ids = ToldIds(self._has_ids)
        self._scores = ToldScores(are_wanted=question.options.top_logprobs is not None)
        self._num_characters = 0  # of the tokens whose scores were told
        self._has_usage = fields.inner("stream_options").flag("include_usage")
        self._is_counting = fields.inner("stream_options").flag("continuous_usage_stats")
        self._usage = Usage(0, 0, 0)

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer as one object."""
        self._ids.rest(answer)
        self._scores.rest(answer)
        return self._event(answer.text, answer) | {"usage": usage_json(answer.usage)} | self._about(answer)

    def begin(self, usage: Usage) -> Iterator[str]:
        self._usage = usage
        yield sse(self._event(""))

    def tell(self, text: Text) -> Iterator[str]:
        self._ids.add(text.ids)
        self._scores.add(text)
        usage = replace(self._usage, completion_tokens=self._ids.num_generated)
        yield sse(self._event(text.text) | ({"usage": usage_json(usage)} if self._is_counting else {}))

    def end(self, answer: Answer) -> Iterator[str]:
        self._ids.rest(answer)
        self._scores.rest(answer)
        end = self._event("", answer)
        yield sse(end if self._has_usage else end | self._about(answer))
        if self._has_usage:
            yield sse({**self._head, "choices": [], "usage": usage_json(answer.usage), **self._about(answer)})
        yield DONE

    def fail(self, error: RefusedError) -> Iterator[str]:
        yield sse(openai_form(error))
        yield DONE

    def _about(self, answer: Answer) -> dict[str, Any]:
        return {"kvchat": kvchat_json(self._question, answer)}

    def _event(self, text: str, answer: Answer | None = None) -> dict[str, Any]:
        """One choice; with the answer, the last."""
        finish = finish_of(answer) if answer else None
        choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        if self._scores.are_wanted:
            told = self._scores.take()
            choice["logprobs"] = completion_json(told, self._num_characters)
            self._num_characters += sum(len(scored.token.text) for scored in told)
        choice |= self._ids.json()
        if answer and self._has_ids:
            choice["prompt_token_ids"] = answer.prompt
        return {**self._head, "choices": [choice]}
