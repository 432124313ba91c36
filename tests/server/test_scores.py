"""Tokens' scores over HTTP: of chats and completions, at once and streamed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.client import Client

CHAT = {"logprobs": True, "top_logprobs": 3, "max_tokens": 10}


def content_of(reply: Any) -> list[dict[str, Any]]:
    return list(reply["choices"][0]["logprobs"]["content"])


def test_a_chats_scores_are_those_of_its_tokens(client: Client) -> None:
    whole = client.chat("hello", **CHAT).json
    content = content_of(whole)
    assert len(content) == whole["usage"]["completion_tokens"] == 10
    text = b"".join(bytes(one["bytes"]) for one in content).decode("utf-8", "replace")
    said = whole["choices"][0]["message"]["content"]
    assert text.rstrip("\ufffd") == said.rstrip("\ufffd"), (
        "half a character at the end is left out of the text"
    )
    for one in content:
        tops = [other["logprob"] for other in one["top_logprobs"]]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True)
        assert one["logprob"] == tops[0] < 0, "it was greedy"
        assert one["token"] == one["top_logprobs"][0]["token"]


def test_streamed_scores_are_the_same_and_each_is_told_once(client: Client) -> None:
    whole = content_of(client.chat("hello", **CHAT).json)
    chunks = [event["choices"][0] for event in client.chat("hello", stream=True, **CHAT).events]
    told = [one for chunk in chunks if chunk["logprobs"] for one in chunk["logprobs"]["content"]]
    assert told == whole


def test_scores_do_not_depend_on_the_cache_or_on_temperature_and_penalties(client: Client) -> None:
    first, second = (content_of(client.chat("hello again", **CHAT).json) for _ in range(2))
    assert first == second
    sampled = content_of(
        client.chat("hello again", **CHAT, temperature=0.7, repetition_penalty=1.5, seed=4).json
    )
    assert sampled[0]["top_logprobs"] == first[0]["top_logprobs"]


def test_without_likeliest_tokens_there_is_the_score_alone(client: Client) -> None:
    content = content_of(client.chat("hello", logprobs=True, max_tokens=3).json)
    assert [one["top_logprobs"] for one in content] == [[], [], []]
    assert client.chat("hello", max_tokens=3).json["choices"][0]["logprobs"] is None


def test_behind_a_stop_string_nothing_counts(client: Client) -> None:
    text = client.chat("hello", max_tokens=10).json["choices"][0]["message"]["content"]
    whole = client.chat("hello", stop=text[4:7], **CHAT).json
    said = "".join(one["token"] for one in content_of(whole))
    assert whole["choices"][0]["message"]["content"].startswith(said)


@pytest.mark.parametrize("stream", [False, True])
def test_a_completions_scores_stand_in_its_own_form(client: Client, stream: bool) -> None:
    body = {"model": "default", "prompt": "the quick", "max_tokens": 6, "logprobs": 2}
    reply = client.post("/v1/completions", body | {"stream": stream})
    choices = [event["choices"][0] for event in reply.events] if stream else reply.json["choices"]
    told = [choice["logprobs"] for choice in choices]
    tokens, logprobs, tops, offsets = (
        [one for part in told for one in part[name]]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    )
    assert len(tokens) == len(logprobs) == len(tops) == len(offsets) == 6
    assert offsets[0] == 0 and offsets == sorted(offsets)
    for token, logprob, top in zip(tokens, logprobs, tops, strict=True):
        assert top[token] == logprob == max(top.values())
        assert len(top) in (1, 2), "tokens that read alike are one"
