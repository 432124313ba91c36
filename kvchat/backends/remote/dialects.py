"""Requests as servers take them, and their events as values: a class a form. Sends nothing, knows no tokenizer.

A message that was sent once is sent the same for ever: its JSON depends on that message alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvchat.backends.base import Options, Role, Turn
from kvchat.backends.remote.refusals import message_of
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


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the turns, or the `ids` that they are; `closing_ids` end an answer, `salt` parts caches."""

    server: Server
    turns: tuple[Turn, ...]
    options: Options
    ids: tuple[int, ...] = ()
    closing_ids: tuple[int, ...] = ()
    salt: str | None = None

    @property
    def is_going_on(self) -> bool:
        """Whether the turns end with an unfinished answer."""
        return self.turns[-1].role is Role.ASSISTANT

    @property
    def max_tokens(self) -> int | None:
        """The longest answer; of ids that are known, what the context has room for."""
        room = self.server.model.context - len(self.ids) if self.ids and self.server.model.context else None
        wanted = self.options.max_tokens
        return room if wanted is None else wanted if room is None else min(wanted, room)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server reports: tokens and milliseconds; None for what it does not."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    prompt_ms: float | None = None
    predicted_ms: float | None = None

    def updated(self, newer: Counts) -> Counts:
        """These, with what a later event says."""
        names = ("prompt", "completion", "cached", "prompt_ms", "predicted_ms")
        return Counts(
            *(getattr(self, name) if (value := getattr(newer, name)) is None else value for name in names)
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of an answer. `ids` None: it has none; `progress` is (done, total, cached) of the prompt's tokens.

    With `is_total`, `ids` are all that were generated so far. `error` is what went wrong in the server's words.
    """

    text: str = ""
    reasoning: str = ""
    ids: tuple[int, ...] | None = None
    is_total: bool = False
    prompt_ids: tuple[int, ...] | None = None
    finish: str | None = None
    counts: Counts = field(default_factory=Counts)
    progress: tuple[int, int, int] | None = None
    error: str | None = None


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
        if question.max_tokens is not None:
            is_theirs = server.target.remote.url.startswith("https://api.openai.com")
            body["max_completion_tokens" if is_theirs else "max_tokens"] = question.max_tokens
        if options.think is not None and features.takes_template_options:
            body["chat_template_kwargs"] = {"enable_thinking": options.think, "thinking": options.think}
        return body

    def read(self, event: Mapping[str, Any]) -> Chunk:
        choice = _first(event.get("choices"))
        said = _object(choice.get("delta")) or _object(choice.get("message"))
        thought = said.get("reasoning_content") or said.get("reasoning") or said.get("thinking")
        finish = choice.get("finish_reason")
        return Chunk(
            text=_text(said.get("content")) or _text(choice.get("text")),
            reasoning=_text(thought),
            ids=_ids(choice.get("token_ids")),
            prompt_ids=_ids(event.get("prompt_token_ids")) or _ids(choice.get("prompt_token_ids")),
            finish=_CHAT_FINISH.get(finish, "stop") if isinstance(finish, str) else None,
            counts=_usage(event).updated(_timings(event.get("timings"))),
            progress=_progress(event),
            error=_error(event),
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
        progress = _progress(event)
        finish = None
        if event.get("stop") is True:
            finish = "length" if event.get("stop_type") == "limit" else "stop"
        counts = Counts(
            prompt=_count(event.get("tokens_evaluated")), completion=_count(event.get("tokens_predicted"))
        )
        return Chunk(
            text=_text(event.get("content")),
            ids=() if progress else _ids(event.get("tokens")),  # of progress they are no tokens of the answer
            finish=finish,
            counts=counts.updated(_timings(event.get("timings"))),
            progress=progress,
            error=_error(event),
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
        about = _object(event.get("meta_info"))
        finish = about.get("finish_reason")
        kind = finish.get("type") if isinstance(finish, dict) else finish
        ids, num_generated = _ids(event.get("output_ids")), _count(about.get("completion_tokens"))
        return Chunk(
            ids=ids,
            is_total=ids is not None and len(ids) == num_generated,
            finish=None if kind is None else "length" if kind == "length" else "stop",
            counts=Counts(
                _count(about.get("prompt_tokens")), num_generated, _count(about.get("cached_tokens"))
            ),
            error=_error(event) or (_text(_object(finish).get("message")) if kind == "abort" else None),
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
        delta = _object(event.get("delta"))
        usage = _object(event.get("usage")) or _object(_object(event.get("message")).get("usage"))
        read, written = _count(usage.get("cache_read_input_tokens")), usage.get("cache_creation_input_tokens")
        fresh = _count(usage.get("input_tokens"))
        prompt = None if fresh is None else fresh + (read or 0) + (_count(written) or 0)
        reason = delta.get("stop_reason")
        return Chunk(
            text=_text(delta.get("text"))
            or _text(event.get("content")),  # the latter where it does not stream
            reasoning=_text(delta.get("thinking")),
            finish=None if reason is None else "length" if reason == "max_tokens" else "stop",
            counts=Counts(prompt, _count(usage.get("output_tokens")), read),
            error=_error(event),
        )


def dialect_for(server: Server, *, sends_ids: bool) -> Dialect:
    """The form in which a server is asked."""
    if server.kind is Kind.ANTHROPIC:
        return Anthropic()
    if not sends_ids:
        return Chat()
    by_kind: dict[Kind, Dialect] = {Kind.LLAMA: LlamaCompletion(), Kind.SGLANG: SglangGenerate()}
    return by_kind.get(server.kind, Completions())


def messages_json(turns: Sequence[Turn], thoughts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The messages; of an answer the reasoning under each name in `thoughts`, for the server's template to use or drop."""
    return [
        {"role": str(turn.role), "content": turn.text}
        | (dict.fromkeys(thoughts, turn.reasoning) if turn.reasoning else {})
        for turn in turns
    ]


def unsent(options: Options, server: Server) -> list[str]:
    """The options that were asked for and that this kind of server does not take."""
    known = server.features.sampling
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    left = [name for name in names if getattr(options, name) is not None and name not in known]
    takes_think = server.features.takes_template_options or server.kind is Kind.ANTHROPIC
    return left + (["think"] if options.think is not None and not takes_think else [])


def sampling_json(question: Question, *, has_stop: bool = True) -> dict[str, Any]:
    """The options that this kind of server takes, and the salt of its cache."""
    options, features = question.options, question.server.features
    values = {theirs: getattr(options, ours) for ours, theirs in features.sampling.items()}
    body = {name: value for name, value in values.items() if value is not None}
    if has_stop and options.stop:
        body["stop"] = list(options.stop)
    if question.salt:
        body["cache_salt"] = question.salt
    return body


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


def _usage(event: Mapping[str, Any]) -> Counts:
    usage = _object(event.get("usage"))
    details = _object(usage.get("prompt_tokens_details"))
    cached = (details.get("cached_tokens"), usage.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"))
    found = (
        count
        for value in (*cached, usage.get("cache_read_input_tokens"))
        if (count := _count(value)) is not None
    )
    return Counts(
        _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), next(found, None)
    )


def _timings(value: object) -> Counts:
    """llama-server's own clock; its `cache_n` and `prompt_n` are the prompt's tokens."""
    timings = _object(value)
    cached, new = _count(timings.get("cache_n")), _count(timings.get("prompt_n"))
    prompt = None if cached is None or new is None else cached + new
    times = (_time(timings.get("prompt_ms")), _time(timings.get("predicted_ms")))
    return Counts(prompt, _count(timings.get("predicted_n")), cached, *times)


def _progress(event: Mapping[str, Any]) -> tuple[int, int, int] | None:
    said = _object(event.get("prompt_progress"))
    total, cached, done = (_count(said.get(name)) for name in ("total", "cache", "processed"))
    return None if total is None or cached is None or done is None else (done, total, cached)


def _error(event: Mapping[str, Any]) -> str | None:
    found = event.get("error")
    if not found and event.get("type") != "error" and event.get("object") != "error":
        return None
    return message_of(dict(event)) or "it does not say why"


def _first(value: object) -> Mapping[str, Any]:
    return _object(value[0]) if isinstance(value, list) and value else {}


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    """A text; of a list of parts, theirs."""
    if isinstance(value, list):
        return "".join(_text(_object(part).get("text")) for part in value)
    return value if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _time(value: object) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else None  # type: ignore[operator, arg-type]


def _ids(value: object) -> tuple[int, ...] | None:
    is_ids = isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 30 for one in value)
    return tuple(value) if is_ids else None  # type: ignore[arg-type]
