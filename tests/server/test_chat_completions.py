from __future__ import annotations

from typing import Any

import pytest

from kvchat.backends.base import Done, Options, Role, Turn
from kvchat.backends.local import LocalBackend
from tests.server.client import Client, as_messages


def said(events: list[Any]) -> str:
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def cached(reply: Any) -> int:
    return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_an_answer_is_the_librarys(client: Client, backend: LocalBackend) -> None:
    reply = client.chat(("system", "brief"), "hello world, over HTTP").json
    turns = [Turn(Role.SYSTEM, "brief"), Turn(Role.USER, "hello world, over HTTP")]
    *_, done = backend.answer(turns, Options(temperature=0.0, max_tokens=12, repeat_stop=False))
    assert isinstance(done, Done)
    assert reply["choices"][0]["message"]["content"] == done.answer.text != ""
    assert reply["choices"][0]["finish_reason"] == "length"
    usage = reply["usage"]
    assert usage["prompt_tokens"] == done.answer.usage.prompt_tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_streamed_answer_is_the_same_text_and_usage(client: Client) -> None:
    whole = client.chat("the quick brown fox", return_token_ids=True)
    ids = whole.json["choices"][0]["token_ids"]
    fields = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    reply = client.chat("the quick brown fox", **fields)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert said(reply.events) == whole.json["choices"][0]["message"]["content"]
    *_, last, usage = reply.events
    assert last["choices"][0]["finish_reason"] == whole.json["choices"][0]["finish_reason"]
    assert usage["choices"] == [] and usage["usage"]["prompt_tokens"] == whole.json["usage"]["prompt_tokens"]
    assert [
        one for event in reply.events for choice in event["choices"] for one in choice["token_ids"]
    ] == ids
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert all(event["usage"] is None for event in reply.events[:-1])


def test_a_client_that_sends_text_back_hits_to_the_token(client: Client) -> None:
    messages: list[str] = ["a conversation of its own"]
    held = 0
    for number in range(6):
        reply = client.chat(*messages, return_token_ids=True, seed=number, temperature=2.0).json
        assert cached(reply) >= held
        prompt, completion = reply["prompt_token_ids"], reply["choices"][0]["token_ids"]
        held = len(prompt) + len(completion)
        messages += [reply["choices"][0]["message"]["content"], f"and {number}?"]
    last = client.chat(*messages, return_token_ids=True).json
    assert last["prompt_token_ids"][:held] == [*prompt, *completion]
    assert cached(last) == held


def test_an_answer_whose_text_was_changed_is_encoded_anew(client: Client) -> None:
    first = client.chat("one of two", temperature=2.0, seed=3, return_token_ids=True).json
    text = first["choices"][0]["message"]["content"]
    other = client.chat("one of two", text + " dog", "go on", return_token_ids=True).json
    before = [*first["prompt_token_ids"], *first["choices"][0]["token_ids"]]
    assert other["prompt_token_ids"][: len(before)] != before


def test_white_space_around_an_answer_that_a_client_drops_changes_nothing(client: Client) -> None:
    for seed in range(20):
        first = client.chat("blank or not", temperature=2.0, seed=seed, return_token_ids=True).json
        text = first["choices"][0]["message"]["content"]
        if text != text.strip():
            break
    again = client.chat("blank or not", text.strip(), "go on", return_token_ids=True).json
    before = [*first["prompt_token_ids"], *first["choices"][0]["token_ids"]]
    assert text != text.strip() and again["prompt_token_ids"][: len(before)] == before


def test_a_prefix_is_cached_to_the_token_and_why_says_so(client: Client) -> None:
    first = client.chat(("system", "a prompt that nobody gave before"), "one").json
    assert first["kvchat"]["computed"] == first["usage"]["prompt_tokens"] - cached(first)
    assert sum(first["kvchat"]["cached"].values()) == cached(first)
    again = client.chat(("system", "a prompt that nobody gave before"), "one").json
    assert cached(again) == again["usage"]["prompt_tokens"] - 1
    assert again["kvchat"]["why"] == "all of it was held; the last token is always computed"


def test_an_unfinished_answer_is_gone_on_with(client: Client) -> None:
    whole = client.chat("count", max_tokens=10, return_token_ids=True).json
    begun = client.chat("count", max_tokens=4).json["choices"][0]["message"]["content"]
    rest = client.chat("count", begun, max_tokens=6, return_token_ids=True).json
    assert begun + rest["choices"][0]["message"]["content"] == whole["choices"][0]["message"]["content"]
    joined = whole["choices"][0]["message"]["content"]
    after = client.chat("count", joined, "and?", return_token_ids=True).json
    before = [*whole["prompt_token_ids"], *whole["choices"][0]["token_ids"]]
    assert after["prompt_token_ids"][: len(before)] == before


def test_stop_strings_seeds_and_lengths_count(client: Client) -> None:
    whole = client.chat("stop here", max_tokens=40).json["choices"][0]["message"]["content"]
    stop = whole[5:8]
    reply = client.chat("stop here", max_tokens=40, stop=stop).json["choices"][0]
    assert reply["message"]["content"] == whole[: whole.find(stop)] and reply["finish_reason"] == "stop"
    drawn = [
        client.chat("draw", temperature=1.5, seed=seed).json["choices"][0]["message"]["content"]
        for seed in (7, 7, 8)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    for name in ("max_tokens", "max_completion_tokens"):
        assert client.chat("draw", **{name: 5}).json["usage"]["completion_tokens"] == 5


def test_content_may_come_in_parts_and_roles_under_other_names(client: Client) -> None:
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "world"}]
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
    one = client.post("/v1/chat/completions", {"model": "default", "messages": messages}).json
    other = client.chat(("system", "x"), "hello world").json
    assert one["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 21},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"logit_bias": {"5": 1}},
        {"frequency_penalty": 0.5},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
                }
            ]
        },
    ],
)
def test_what_is_not_done_is_refused_and_named(client: Client, fields: dict[str, Any]) -> None:
    reply = client.post("/v1/chat/completions", {"model": "default", "messages": as_messages("hi")} | fields)
    error = reply.json["error"]
    assert reply.status == 400 and error["type"] == "invalid_request_error" and error["message"]
    assert error["param"]


def test_what_asks_for_nothing_special_is_no_reason_to_refuse(client: Client) -> None:
    harmless = {
        "n": 1,
        "logprobs": False,
        "frequency_penalty": 0.0,
        "response_format": {"type": "text"},
        "user": "me",
    }
    assert client.chat("hi", **harmless, logit_bias={}, tools=[], store=False, metadata={}).status == 200


def test_a_conversation_too_long_is_refused_with_its_code(client: Client) -> None:
    reply = client.chat("word " * 40_000)
    assert reply.status == 400 and reply.json["error"]["code"] == "context_length_exceeded"
    streamed = client.chat("word " * 40_000, stream=True)
    assert streamed.status == 400


def test_another_model_is_not_found(client: Client) -> None:
    name = client.get("/v1/models").json["data"][0]["id"]
    assert client.chat("hi", model=name).status == 200
    reply = client.chat("hi", model="gpt-4")
    assert reply.status == 404 and reply.json["error"]["code"] == "model_not_found"
