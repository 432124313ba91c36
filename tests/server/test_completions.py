from __future__ import annotations

from typing import Any

import pytest

from tests.server.client import Client


def ask(client: Client, prompt: Any, **fields: Any) -> Any:
    reply = client.post(
        "/v1/completions", {"model": "default", "prompt": prompt, "return_token_ids": True} | fields
    )
    assert reply.status == 200, reply.body
    return reply.json


def ids(reply: Any) -> tuple[list[int], list[int]]:
    choice = reply["choices"][0]
    return choice["prompt_token_ids"], choice["token_ids"]


def cached(reply: Any) -> int:
    return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_a_text_and_its_ids_are_one_prompt(client: Client) -> None:
    by_text = ask(client, "the quick brown fox")
    prompt, _ = ids(by_text)
    by_ids = ask(client, prompt)
    assert by_ids["choices"][0]["text"] == by_text["choices"][0]["text"] != ""
    assert cached(by_ids) == len(prompt) - 1
    assert ids(ask(client, ["the quick brown fox"]))[0] == ids(ask(client, [prompt]))[0] == prompt


def test_sixteen_tokens_are_answered_where_nothing_is_said(client: Client) -> None:
    assert ask(client, "how long")["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("as_ids", [False, True])
def test_a_prompt_that_grows_by_its_answers_is_cached_to_the_token(client: Client, as_ids: bool) -> None:
    prompt: Any = ids(ask(client, "once upon a time"))[0] if as_ids else "once upon a time"
    held = 0
    for number in range(5):
        reply = ask(client, prompt, temperature=3.0, seed=number, max_tokens=9)
        assert cached(reply) >= held
        before, answer = ids(reply)
        held = len(before) + len(answer)
        more = client.post("/tokenize", {"prompt": f" then {number}"}).json["tokens"]
        prompt = (
            [*before, *answer, *more] if as_ids else prompt + reply["choices"][0]["text"] + f" then {number}"
        )
    assert ids(ask(client, prompt))[0][:held] == [*before, *answer]


def test_control_tokens_count_in_a_bare_prompt(client: Client) -> None:
    chat = client.chat("hello", return_token_ids=True).json
    bare = ask(client, "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", max_tokens=12)
    assert ids(bare) == (chat["prompt_token_ids"], chat["choices"][0]["token_ids"])
    assert bare["choices"][0]["text"] == chat["choices"][0]["message"]["content"]


def test_a_streamed_completion_is_the_same(client: Client) -> None:
    whole = ask(client, "a stream")
    fields = {
        "model": "default",
        "prompt": "a stream",
        "stream": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }
    events = client.post("/v1/completions", fields).events
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == whole["choices"][0]["text"]
    told = [one for event in events[:-1] for one in event["choices"][0]["token_ids"]]
    assert (events[-2]["choices"][0]["prompt_token_ids"], told) == ids(whole)
    assert all(event["choices"][0]["token_ids"] for event in events[1:-2])
    assert events[-1]["usage"]["completion_tokens"] == 16


def test_tokens_that_end_every_answer_may_be_named(client: Client) -> None:
    assert ask(client, "end", stop_token_ids=[1])
    assert (
        client.post("/v1/completions", {"model": "default", "prompt": "end", "stop_token_ids": [7]}).status
        == 400
    )


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        "",
        [],
        [[]],
        ["one", "two"],
        [1, "x"],
        [-1],
        [1.5],
        [True],
        7,
        {"a": 1},
        [[1], [2]],
        [2**40],
        [319999],
    ],
)
def test_what_is_no_prompt_is_refused(client: Client, prompt: Any) -> None:
    reply = client.post("/v1/completions", {"model": "default", "prompt": prompt})
    assert reply.status == 400 and reply.json["error"]["message"]


@pytest.mark.parametrize("fields", [{"echo": True}, {"suffix": "x"}, {"best_of": 3}, {"logprobs": 21}])
def test_what_is_not_done_is_refused(client: Client, fields: dict[str, Any]) -> None:
    assert client.post("/v1/completions", {"model": "default", "prompt": "hi"} | fields).status == 400
