"""What is sent: the same bytes for the same message, for ever, in each server's form; and what is read of its answers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvchat.backends.base import Answer, Done, Notice, Options, Role, Text, Turn
from kvchat.backends.remote.dialects import dialect_for
from kvchat.backends.remote.events import EventReader
from kvchat.backends.remote.link import encoded
from kvchat.backends.remote.question import Question
from kvchat.backends.remote.server import Kind, Served, Server
from kvchat.errors import UsageError
from kvchat.remotes import RemoteConfig, Target
from tests.backends.remote.servers import as_events, as_json
from tests.backends.remote.test_misbehaving import asked, said

TEXTS = st.text(max_size=40)
DONE = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def server(kind: Kind, **settings: Any) -> Server:
    remote = RemoteConfig("http://localhost:1", **settings)
    return Server(Target("here", remote), kind, (), Served("m", 4096))


def question(kind: Kind, turns: list[Turn], options: Options | None = None, **rest: Any) -> Question:
    return Question(server(kind), tuple(turns), options or Options(), **rest)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=5), st.sampled_from(list(Kind)[:4]))
def test_a_message_that_was_sent_is_sent_byte_for_byte_the_same(
    exchanges: list[tuple[str, str, str]], kind: Kind
) -> None:
    turns = [Turn(Role.SYSTEM, "Be brief.")]
    before = b""
    for asked_text, thought, answered in exchanges:
        turns.append(Turn(Role.USER, asked_text))
        body = dialect_for(server(kind), sends_ids=False).body(question(kind, turns))
        messages = encoded(body["messages"])
        assert messages.startswith(before)
        assert messages == encoded(
            dialect_for(server(kind), sends_ids=False).body(question(kind, turns))["messages"]
        )
        before = messages[:-1]
        turns.append(Turn(Role.ASSISTANT, answered, thought))


@pytest.mark.parametrize("kind", [Kind.VLLM, Kind.SGLANG, Kind.LLAMA])
def test_ids_go_out_as_they_are_and_their_answer_is_asked_for_as_ids(kind: Kind) -> None:
    ids = (5, 6, 7)
    asking = question(kind, [Turn(Role.USER, "x")], Options(top_k=3), ids=ids, closing_ids=(2,), salt="s")
    form = dialect_for(asking.server, sends_ids=True)
    body = form.body(asking)
    assert list(ids) in body.values() and "messages" not in body
    text = json.dumps(body)
    assert ('"top_k": 3' in text and '"s"' in text and "4093" in text) or kind is Kind.LLAMA
    path = {Kind.VLLM: "/v1/completions", Kind.SGLANG: "/generate", Kind.LLAMA: "/completion"}[kind]
    assert form.url(asking.server).endswith(path)


def test_anthropics_cache_is_told_to_end_behind_the_system_prompt_and_the_history() -> None:
    turns = [
        Turn(Role.SYSTEM, "Be brief."),
        Turn(Role.USER, "a"),
        Turn(Role.ASSISTANT, ""),
        Turn(Role.USER, "b"),
    ]
    asking = question(Kind.ANTHROPIC, turns, Options(stop=("END",), top_k=4, think=True, max_tokens=3000))
    body = dialect_for(asking.server, sends_ids=False).body(asking)
    mark = {"type": "ephemeral"}
    assert body["system"] == [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": mark}]
    assert body["messages"] == [{"role": "user", "content": parts}]
    assert body["stop_sequences"] == ["END"] and body["thinking"]["budget_tokens"] == 2999


def test_a_server_that_cannot_go_on_is_not_asked_to() -> None:
    turns = [Turn(Role.USER, "a"), Turn(Role.ASSISTANT, "b")]
    with pytest.raises(UsageError, match="can't go on"):
        dialect_for(server(Kind.OPENAI), sends_ids=False).body(question(Kind.OPENAI, turns))
    body = dialect_for(server(Kind.VLLM), sends_ids=False).body(question(Kind.VLLM, turns))
    assert body["continue_final_message"] is True and body["messages"][-1]["content"] == "b"


def answered(
    form: str, *events: Any, options: Options | None = None, **settings: Any
) -> tuple[Answer, list[str], Any]:
    """An answer made of these events, the notices, and the requests."""
    with asked(form, lambda request: as_events(*events), **settings) as (mock, backend):
        seen = list(backend.answer([Turn(Role.USER, "Count.")], options or Options()))
        assert isinstance(seen[-1], Done)
        shown = "".join(event.text for event in seen if isinstance(event, Text) and not event.reasoning)
        assert shown == seen[-1].answer.text
        return seen[-1].answer, [event.message for event in seen if isinstance(event, Notice)], mock.requests


def delta(**fields: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}]}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_in_a_field_of_its_own_is_told_apart(field: str) -> None:
    answer, _, _ = answered(
        "chat", delta(**{field: "well"}), delta(**{field: " then"}), delta(content="yes"), DONE
    )
    assert (answer.reasoning, answer.text) == ("well then", "yes")


@pytest.mark.parametrize(
    ("start", "end"),
    [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thought>", "</thought>"), ("", "</think>")],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_reasoning_between_marks_in_the_text_is_told_apart(start: str, end: str, size: int) -> None:
    text = f"{start}\nwell then\n{end}\n\nyes < no"
    pieces = [delta(content=text[at : at + size]) for at in range(0, len(text), size)]
    with asked("chat", lambda request: as_events(*pieces, DONE)) as (_, backend):
        *_, done = backend.answer([Turn(Role.USER, "Count.")], Options())
    assert isinstance(done, Done)
    assert (done.answer.reasoning, done.answer.text) == ("well then", "yes < no")


@pytest.mark.parametrize("text", ["<", "<thin", "plain", " <b>bold</b>", "[1] one", "<thinkers> of old"])
def test_text_that_only_looks_like_reasoning_is_kept_whole(text: str) -> None:
    answer, _, _ = answered("chat", *(delta(content=char) for char in text), DONE)
    assert (answer.reasoning, answer.text) == ("", text)


REPORTS: dict[str, tuple[str, Any]] = {
    "vllm": ("vllm", {"usage": {"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 96}}}),
    "sglang": ("sglang", {"usage": {"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 96}}}),
    "llama": ("llama", {"timings": {"cache_n": 96, "prompt_n": 4, "prompt_ms": 8.0, "predicted_n": 1, "predicted_ms": 5.0}}),
    "deepseek": ("chat", {"usage": {"prompt_tokens": 100, "completion_tokens": 1, "prompt_cache_hit_tokens": 96}}),
    "anthropic": ("anthropic", {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 4, "cache_read_input_tokens": 96, "output_tokens": 1}}),
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTS)
def test_what_a_server_says_of_its_cache_is_shown_whatever_it_calls_it(name: str) -> None:
    form, report = REPORTS[name]
    events = [said(form, "one"), report, *([] if form == "anthropic" else [DONE])]
    answer, told, _ = answered(form, *events)
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens, told) == (100, 96, [])
    assert answer.cache.is_reported


def test_options_that_a_server_does_not_take_are_named_once_and_not_sent() -> None:
    _, told, requests = answered("chat", DONE, options=Options(top_k=4, temperature=0.5, think=True))
    assert told == ["mock takes no top_k, think: not sent"]
    assert "top_k" not in requests[-1].json and requests[-1].json["temperature"] == 0.5
    _, told, requests = answered("vllm", DONE, options=Options(top_k=4, think=False))
    assert told == [] and requests[-1].json["top_k"] == 4
    assert requests[-1].json["chat_template_kwargs"]["enable_thinking"] is False


def test_salt_headers_and_the_sticky_header_are_sent_as_asked() -> None:
    settings = {
        "cache_salt": "pepper",
        "session_header": "X-Session",
        "headers": {"X-Team": "a", "api-key": "{key}"},
    }
    _, _, requests = answered("vllm", DONE, **settings)
    sent = requests[-1]
    assert sent.json["cache_salt"] == "pepper"
    assert sent.headers["x-team"] == "a" and sent.headers["api-key"].startswith("sk-")
    assert "authorization" not in sent.headers
    assert len(sent.headers["x-session"]) == 32


def test_the_sticky_header_stays_with_a_conversation_and_its_branches() -> None:
    with asked("chat", lambda request: as_events(DONE), session_header="X-S") as (mock, backend):
        first = Turn(Role.USER, "a", time_s=1.0)
        for turns in (
            [first],
            [first, Turn(Role.ASSISTANT, "b"), Turn(Role.USER, "c")],
            [replace(first, text="z")],
        ):
            list(backend.answer(turns, Options()))
        one, same, other = (request.headers["x-s"] for request in mock.requests if request.method == "POST")
    assert one == same != other


def test_a_list_of_models_gives_the_kind_the_context_and_the_nearest_name() -> None:
    listed = {"data": [{"id": "org/model", "owned_by": "vllm", "max_model_len": 777}]}
    from kvchat.backends.remote.link import Link
    from kvchat.backends.remote.server import connect
    from kvchat.errors import ModelUnavailableError
    from tests.backends.remote.servers import serving

    with serving(lambda request: as_json(listed)) as mock:
        link = Link(Target("w", RemoteConfig(mock.url)))
        found = connect(link)
        assert (found.kind, found.model.id, found.model.context) == (Kind.VLLM, "org/model", 777)
        wrong = Link(Target("w", RemoteConfig(mock.url), "org/modle"))
        with pytest.raises(ModelUnavailableError, match="did you mean org/model"):
            connect(wrong)
        link.close()
        wrong.close()


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=30), max_size=8
    ),
    st.data(),
)
def test_events_are_the_same_however_their_bytes_arrive(texts: list[str], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    stream = "".join(f": ping{end}data: {text}{end}{end}" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader, seen = EventReader(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen += reader.feed(stream[start:stop])
    assert [*seen, *reader.finish()] == texts
