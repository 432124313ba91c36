"""Requests as servers take them, and their events as values: a class a form. Sends nothing, knows no tokenizer.

A message that was sent once is sent the same for ever: its JSON depends on that message alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kvchat.backends.base import Role, Turn
from kvchat.backends.remote.chunks import (
    Chunk,
    Counts,
    count_of,
    error_of,
    first_of,
    ids_of,
    logprob_ids_of,
    object_of,
    progress_of,
    text_of,
    timings_of,
    usage_of,
)
from kvchat.backends.remote.question import Question, messages_json, sampling_json
from kvchat.backends.remote.server import Kind, Server
from kvchat.errors import UsageError

DEFAULT_MAX_TOKENS = 8192
"""Asked of servers that want a number, where the context's length is not known."""
THINKING_TOKENS = 4096
_NO_BUDGET = -1
_CHAT_FINISH = {
    "stop": "stop",
    "length": "length",
    "eos": "stop",
    "max_tokens": "length",
    "content_filter": "stop",
}


class Dialect(Protocol):
    """One form of asking. `read` takes any JSON object and never raises."""

    def url(self, server: Server) -> str:
        """Where it is sent."""

    def body(self, question: Question) -> dict[str, Any]:
        """What is sent. Raises UsageError for what this server can't be asked."""

    def read(self, event: Mapping[str, Any]) -> Chunk:
        """What an event says."""


class Chat:
    """`/v1/chat/completions` of OpenAI, vLLM, SGLang, llama-server and whoever else offers it."""

    def url(self, server: Server) -> str:
        return f"{server.api}/chat/completions"

    def body(self, question: Question) -> dict[str, Any]:
        server = question.server
        features, options = server.features, question.options
        body: dict[str, Any] = {
            "model": server.model.id,
            "messages": messages_json(question.turns, features.thoughts),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if question.is_going_on:
            body |= _going_on(question)
        body |= sampling_json(question) | dict(features.extra or {})
        if question.wants_ids and server.kind is Kind.LLAMA:
            body |= {"logprobs": True, "top_logprobs": 1}  # which come with the ids
        if question.max_tokens is not None:
            is_theirs = server.target.remote.url.startswith("https://api.openai.com")
            body["max_completion_tokens" if is_theirs else "max_tokens"] = question.max_tokens
        if options.think is not None and features.takes_template_options:
            body["chat_template_kwargs"] = {"enable_thinking": options.think, "thinking": options.think}
        return body

    def read(self, event: Mapping[str, Any]) -> Chunk:
        choice = first_of(event.get("choices"))
        said = object_of(choice.get("delta")) or object_of(choice.get("message"))
        thought = said.get("reasoning_content") or said.get("reasoning") or said.get("thinking")
        finish = choice.get("finish_reason")
        return Chunk(
            text=text_of(said.get("content")) or text_of(choice.get("text")),
            reasoning=text_of(thought),
            ids=ids_of(choice.get("token_ids")) or logprob_ids_of(choice.get("logprobs")),
            prompt_ids=ids_of(event.get("prompt_token_ids")) or ids_of(choice.get("prompt_token_ids")),
            finish=_CHAT_FINISH.get(finish, "stop") if isinstance(finish, str) else None,
            counts=usage_of(event).updated(timings_of(event.get("timings"))),
            progress=progress_of(event),
            error=error_of(event),
        )


class Completions(Chat):
    """`/v1/completions` with token ids: vLLM's, which gives back the ids that it generated."""

    def url(self, server: Server) -> str:
        return f"{server.api}/completions"

    def body(self, question: Question) -> dict[str, Any]:
        body = {
            "model": question.server.model.id,
            "prompt": list(question.ids),
            "stream": True,
            "max_tokens": question.max_tokens or DEFAULT_MAX_TOKENS,
            "stop_token_ids": list(question.closing_ids),
        }
        return body | sampling_json(question, has_stop=False) | dict(question.server.features.extra or {})


class LlamaCompletion:
    """llama-server's own `/completion` with token ids."""

    def url(self, server: Server) -> str:
        return f"{server.root}/completion"

    def body(self, question: Question) -> dict[str, Any]:
        limit = question.max_tokens
        body = {
            "prompt": list(question.ids),
            "stream": True,
            "return_tokens": True,
            "n_predict": _NO_BUDGET if limit is None else limit,
        }
        return body | sampling_json(question, has_stop=False) | dict(question.server.features.extra or {})

    def read(self, event: Mapping[str, Any]) -> Chunk:
        progress = progress_of(event)
        finish = None
        if event.get("stop") is True:
            finish = "length" if event.get("stop_type") == "limit" else "stop"
        counts = Counts(
            prompt=count_of(event.get("tokens_evaluated")), completion=count_of(event.get("tokens_predicted"))
        )
        return Chunk(
            text=text_of(event.get("content")),
            ids=()
            if progress
            else ids_of(event.get("tokens")),  # of progress they are no tokens of the answer
            finish=finish,
            counts=counts.updated(timings_of(event.get("timings"))),
            progress=progress,
            error=error_of(event),
        )


class SglangGenerate:
    """SGLang's own `/generate` with token ids, whose events have all text so far."""

    def url(self, server: Server) -> str:
        return f"{server.root}/generate"

    def body(self, question: Question) -> dict[str, Any]:
        params = sampling_json(question, has_stop=False)
        params.pop("seed", None)
        salt = params.pop("cache_salt", None)
        params |= {"max_new_tokens": question.max_tokens or DEFAULT_MAX_TOKENS}
        if question.closing_ids:
            params["stop_token_ids"] = list(question.closing_ids)
        body: dict[str, Any] = {"input_ids": list(question.ids), "sampling_params": params, "stream": True}
        return body | ({"extra_key": salt} if salt else {})

    def read(self, event: Mapping[str, Any]) -> Chunk:
        about = object_of(event.get("meta_info"))
        finish = about.get("finish_reason")
        kind = finish.get("type") if isinstance(finish, dict) else finish
        ids, num_generated = ids_of(event.get("output_ids")), count_of(about.get("completion_tokens"))
        return Chunk(
            ids=ids,
            is_total=ids is not None and len(ids) == num_generated,
            finish=None if kind is None else "length" if kind == "length" else "stop",
            counts=Counts(
                count_of(about.get("prompt_tokens")), num_generated, count_of(about.get("cached_tokens"))
            ),
            error=error_of(event) or (text_of(object_of(finish).get("message")) if kind == "abort" else None),
        )


class Anthropic:
    """`/v1/messages`, whose cache is told where to end: behind the system prompt and behind the history."""

    def url(self, server: Server) -> str:
        return f"{server.api}/messages"

    def body(self, question: Question) -> dict[str, Any]:
        turns, options = question.turns, question.options
        system = [turn.text for turn in turns if turn.role is Role.SYSTEM]
        messages = _blocks([turn for turn in turns if turn.role is not Role.SYSTEM])
        messages[-1]["content"][-1]["cache_control"] = {"type": "ephemeral"}
        limit = question.max_tokens or DEFAULT_MAX_TOKENS
        body: dict[str, Any] = {"model": question.server.model.id, "max_tokens": limit}
        if system:
            body["system"] = [{"type": "text", "text": system[0], "cache_control": {"type": "ephemeral"}}]
        body |= {"messages": messages, "stream": True} | sampling_json(question, has_stop=False)
        if options.stop:
            body["stop_sequences"] = list(options.stop)
        if options.think:
            body["thinking"] = {
                "type": "enabled",
                "budget_tokens": max(1024, min(THINKING_TOKENS, limit - 1)),
            }
        return body

    def read(self, event: Mapping[str, Any]) -> Chunk:
        delta = object_of(event.get("delta"))
        usage = object_of(event.get("usage")) or object_of(object_of(event.get("message")).get("usage"))
        read, written = (
            count_of(usage.get("cache_read_input_tokens")),
            usage.get("cache_creation_input_tokens"),
        )
        fresh = count_of(usage.get("input_tokens"))
        prompt = None if fresh is None else fresh + (read or 0) + (count_of(written) or 0)
        reason = delta.get("stop_reason")
        return Chunk(
            text=text_of(delta.get("text"))
            or text_of(event.get("content")),  # the latter where it does not stream
            reasoning=text_of(delta.get("thinking")),
            finish=None if reason is None else "length" if reason == "max_tokens" else "stop",
            counts=Counts(prompt, count_of(usage.get("output_tokens")), read),
            error=error_of(event),
        )


def dialect_for(server: Server, *, sends_ids: bool) -> Dialect:
    """The form in which a server is asked."""
    if server.kind is Kind.ANTHROPIC:
        return Anthropic()
    if not sends_ids:
        return Chat()
    by_kind: dict[Kind, Dialect] = {Kind.LLAMA: LlamaCompletion(), Kind.SGLANG: SglangGenerate()}
    return by_kind.get(server.kind, Completions())


def _going_on(question: Question) -> dict[str, Any]:
    """What asks to go on with the last message. Raises UsageError."""
    server, last = question.server, question.turns[-1]
    fields = server.features.goes_on
    if fields is None:
        raise UsageError(
            f"{server.target.where} can't go on with an answer", "/retry answers the message anew"
        )
    if last.reasoning and not last.text:
        raise UsageError(
            "the answer stopped inside its reasoning, where no server goes on", "/retry answers anew"
        )
    return dict(fields)


def _blocks(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Messages of Anthropic's form: none is empty, none follows one of its own role, and a last answer ends with a letter."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        text = turn.text.rstrip() if turn is turns[-1] and turn.role is Role.ASSISTANT else turn.text
        if not text.strip():
            continue
        block = {"type": "text", "text": text}
        if messages and messages[-1]["role"] == turn.role:
            messages[-1]["content"].append(block)
        else:
            messages.append({"role": str(turn.role), "content": [block]})
    return messages or [{"role": "user", "content": [{"type": "text", "text": "."}]}]
