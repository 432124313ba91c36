"""A server that misbehaves costs one line: nothing that came is lost, and the key goes nowhere else. 300 cases and more."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from kvchat.backends.base import Answer, Done, FinishReason, Notice, Options, Role, Text, Turn
from kvchat.backends.remote.backend import RemoteBackend
from kvchat.config import Config
from kvchat.errors import KvchatError
from kvchat.remotes import RemoteConfig, Target
from tests.backends.remote.servers import Reply, Request, Server, as_events, as_json, serving

KEY = "sk-secret-4711"
WORDS = ("one ", "two ", "three ", "four ")
LISTS = {"chat": "someone", "vllm": "vllm", "sglang": "sglang", "llama": "llamacpp", "anthropic": "someone"}
FORMS = tuple(LISTS)
QUESTION = [Turn(Role.SYSTEM, "Be brief."), Turn(Role.USER, "Count.")]


def said(form: str, word: str) -> Any:
    """An event with some text of the answer, in a form."""
    if form == "anthropic":
        return {"type": "content_block_delta", "delta": {"type": "text_delta", "text": word}}
    return {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}


def finished(form: str) -> list[Any]:
    """The events that end a whole answer."""
    if form == "anthropic":
        usage = {"output_tokens": 4, "input_tokens": 10, "cache_read_input_tokens": 0}
        return [
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
            {"type": "message_stop"},
        ]
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
    return [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    ]


def whole(form: str) -> Reply:
    return as_events(*(said(form, word) for word in WORDS), *finished(form))


@contextmanager
def asked(
    form: str, answer: Callable[[Request], Reply], **settings: Any
) -> Iterator[tuple[Server, RemoteBackend]]:
    """A backend whose server lists its model and then answers as it is told."""

    def reply(request: Request) -> Reply:
        if request.path.endswith("/models"):
            return as_json({"data": [{"id": "m", "owned_by": LISTS[form], "max_model_len": 4096}]})
        if request.method == "GET":
            return as_json({}, 404)
        return answer(request)

    with serving(reply) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_KEY", KEY)
        kind = {"server": "anthropic"} if form == "anthropic" else {}
        remote = RemoteConfig(server.url, api_key_env="TEST_KEY", **({"timeout": 5.0} | kind | settings))
        backend = RemoteBackend(Config(), Target("mock", remote))
        try:
            yield server, backend
        finally:
            backend.close()


def outcome(
    backend: RemoteBackend, options: Options | None = None
) -> tuple[str, list[str], Answer | KvchatError]:
    """The text that was shown, the lines that were told, and what came of it."""
    shown, told = "", []
    try:
        for event in backend.answer(QUESTION, options or Options(max_tokens=9)):
            if isinstance(event, Text):
                shown += event.text
            elif isinstance(event, Notice):
                told.append(event.message)
            elif isinstance(event, Done):
                return shown, told, event.answer
    except KvchatError as error:
        return shown, [*told, str(error)], error
    raise AssertionError("an answer ended without Done")


def check_lines(lines: list[str]) -> None:
    """Exactly one line is told, which says what happened and what to do, and no key."""
    assert len(lines) == 1
    assert (
        "\n" not in lines[0]
        and len(lines[0]) > 20
        and KEY not in lines[0]
        and "internal error" not in lines[0]
    )


def test_a_server_that_behaves_is_told_nothing_of() -> None:
    for form in FORMS:
        with asked(form, lambda request, form=form: whole(form)) as (server, backend):
            shown, told, answer = outcome(backend)
            assert (shown, told) == ("".join(WORDS), [])
            assert isinstance(answer, Answer) and answer.finish_reason is FinishReason.STOP
            key = server.requests[-1].headers
            assert KEY in (key.get("authorization", "") + key.get("x-api-key", ""))


ERROR_BODIES: dict[str, Reply] = {
    "json": as_json({"error": {"message": f"no good {KEY}", "type": "x"}}),
    "plain": Reply([b"no good"], headers={"Content-Type": "text/plain"}),
    "page": Reply([b"<html><body>nginx</body></html>"], headers={"Content-Type": "text/html"}),
    "empty": Reply([], headers={}),
    "lines": as_json({"message": "first\nsecond\r\n\x1b[31mthird"}),
    "endless": Reply([b"x" * 65536], headers={"Content-Type": "text/plain"}, repeat=40),
}
STATUSES = (300, 301, 302, 307, 308, 400, 401, 403, 404, 405, 413, 422, 500, 501, 502, 504, 520)


@pytest.mark.parametrize("status", STATUSES)
def test_a_refusal_is_one_line_with_its_remedy(status: int) -> None:  # 17 * 6 bodies = 102 cases
    replies = [replace(body, status=status) for body in ERROR_BODIES.values()]
    with asked(FORMS[status % len(FORMS)], lambda request: replies.pop()) as (_, backend):
        while replies:
            shown, lines, result = outcome(backend)
            assert shown == "" and isinstance(result, KvchatError) and result.remedy
            check_lines(lines)


BREAKS: dict[str, Reply] = {
    "closes": Reply([]),
    "resets": Reply([], end="reset"),
    "breaks inside an event": Reply([b'data: {"choi']),
    "is short of its length": Reply([], length=10**6),
    "says no JSON": Reply([b"data: {oops\n\n"]),
    "says a list": Reply([b"data: [1, 2]\n\n"]),
    "says a number": Reply([b"data: 7\n\n"]),
    "nests without end": Reply([b"data: " + b"[" * 100_000 + b"\n\n"]),
    "says an error": Reply([b'data: {"error": {"message": "CUDA out of memory"}}\n\n']),
    "says an error as text": Reply([b'data: {"error": "CUDA out of memory"}\n\n']),
    "says an error of a kind": Reply([b'data: {"type": "error", "error": {"message": "overloaded"}}\n\n']),
    "has no end in a line": Reply([b"data: " + b"x" * 2**20, *[b"x" * 2**20] * 9]),
    "has no end in an event": Reply([b"data: " + b"x" * 2**16 + b"\n"], repeat=160),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_what_came_before_a_break_is_kept(fault: str) -> None:  # 13 faults * 3 forms * 5 places = 195 cases
    fault_reply = BREAKS[fault]
    for form in ("chat", "vllm", "anthropic"):
        replies: list[Reply] = []
        with asked(form, lambda request, replies=replies: replies.pop()) as (_, backend):
            for count in range(len(WORDS) + 1):
                begun = [f"data: {json.dumps(said(form, word))}\n\n".encode() for word in WORDS[:count]]
                pieces = [*begun, *[*fault_reply.pieces] * fault_reply.repeat]
                replies.append(replace(fault_reply, pieces=pieces, repeat=1))
                shown, lines, result = outcome(backend)
                check_lines(lines)
                if count == 0:
                    assert shown == "" and isinstance(result, KvchatError)
                elif fault != "resets":  # a reset may overtake what was sent before it
                    assert isinstance(result, Answer), lines
                    assert shown == result.text == "".join(WORDS[:count])
                    assert result.finish_reason is FinishReason.BROKEN


KINDS = ("text/html", "text/html; charset=utf-8", "image/png", "application/xml", "application/pdf")


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_of_another_kind_names_the_url(kind: str) -> None:
    reply = Reply([b"<html>"], headers={"Content-Type": kind})
    with asked("chat", lambda request: reply) as (server, backend):
        _, lines, result = outcome(backend)
        check_lines(lines)
        assert isinstance(result, KvchatError) and server.url in result.remedy


def test_a_server_that_does_not_stream_is_understood() -> None:
    message = {
        "message": {"role": "assistant", "content": "all at once"},
        "finish_reason": "stop",
        "index": 0,
    }
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    with asked("chat", lambda request: as_json({"choices": [message], "usage": usage})) as (_, backend):
        shown, told, answer = outcome(backend)
        assert (shown, told) == ("all at once", []) and isinstance(answer, Answer)
        assert answer.usage.prompt_tokens == 5
        assert not answer.cache.is_reported and answer.cache.reason.startswith("not reported")


def test_no_usage_is_no_fault() -> None:
    events = [said("chat", "hello"), {"choices": [{"delta": {}, "finish_reason": "length"}]}]
    with asked("chat", lambda request: as_events(*events)) as (_, backend):
        shown, told, answer = outcome(backend)
        assert (shown, told) == ("hello", []) and isinstance(answer, Answer)
        assert answer.usage.prompt_tokens == 0 and answer.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize("wait", ["0", "0.05", None])
def test_a_busy_server_is_asked_again_and_that_is_said(
    status: int, wait: str | None, monkeypatch: Any
) -> None:
    monkeypatch.setattr("kvchat.backends.remote.asking._BREATH_S", 0.05)
    replies = iter(
        [as_json({"error": "busy"}, status, **({"Retry_After": wait} if wait else {})), whole("chat")]
    )
    with asked("chat", lambda request: next(replies)) as (_, backend):
        shown, told, answer = outcome(backend)
        assert shown == "".join(WORDS) and isinstance(answer, Answer)
        check_lines(told)
        assert "asked again" in told[0]


@pytest.mark.parametrize("wait", ["3600", "61", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_a_server_that_wants_more_patience_is_left_alone(wait: str) -> None:
    with asked("chat", lambda request: as_json({}, 429, Retry_After=wait)) as (server, backend):
        _, lines, result = outcome(backend)
        check_lines(lines)
        assert isinstance(result, KvchatError) and "ask again in" in result.remedy
        assert sum(request.method == "POST" for request in server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("when", ["listing", "asking"])
def test_no_key_goes_to_another_host(status: int, when: str) -> None:
    with serving(lambda request: whole("chat")) as other:
        away = Reply([], status, {"Location": f"{other.url}/v1/chat/completions"}, 0)

        def answer(request: Request) -> Reply:
            return away

        with serving(lambda request: away) as alone, asked("chat", answer) as (_, backend):
            if when == "listing":
                backend = RemoteBackend(
                    Config(), Target("mock", RemoteConfig(alone.url, api_key_env="TEST_KEY"))
                )
            _, lines, result = outcome(backend)
            backend.close()
            check_lines(lines)
            assert isinstance(result, KvchatError) and other.url in lines[0]
        assert other.requests == []


def test_a_slow_server_is_given_up_after_its_time() -> None:
    with asked("chat", lambda request: Reply([], end="hang"), timeout=0.2) as (_, backend):
        _, lines, result = outcome(backend)
        check_lines(lines)
        assert isinstance(result, KvchatError)


def test_a_server_that_falls_silent_keeps_what_it_said() -> None:
    reply = as_events(said("chat", "one "), done=False, end="hang")
    with asked("chat", lambda request: reply, timeout=0.3) as (_, backend):
        shown, lines, answer = outcome(backend)
        check_lines(lines)
        assert shown == "one " and isinstance(answer, Answer) and answer.finish_reason is FinishReason.BROKEN


def test_a_cancel_closes_the_stream_and_keeps_what_came() -> None:
    reply = as_events(said("chat", "one "), done=False, end="hang")
    with asked("chat", lambda request: reply) as (server, backend):
        events = backend.answer(QUESTION, Options())
        while not isinstance(event := next(events), Text):
            pass
        assert event.text == "one "
        backend.cancel()
        *_, last = events
        assert isinstance(last, Done) and last.answer.text == "one "
        assert last.answer.finish_reason is FinishReason.CANCELLED
        assert server.closed_early.wait(5)


def test_a_cancel_before_the_first_word_takes_the_question_back() -> None:
    with asked("chat", lambda request: Reply([], end="hang")) as (_, backend):
        backend.info()
        events = backend.answer(QUESTION, Options())
        threading.Timer(0.1, backend.cancel).start()
        (last,) = events
        assert isinstance(last, Done) and last.answer.text == ""
        assert last.answer.finish_reason is FinishReason.CANCELLED
