from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvchat.backends.base import Options
from tests.server.client import Client, as_messages
from tests.server.talker import TOOL, WEATHER, Talker, marked, saying

PATH = "/v1/messages"
OWN_TOOL = {"name": "weather", "description": TOOL["function"]["description"], "input_schema": WEATHER}


def ask(client: Client, *messages: str, **fields: Any) -> Any:
    reply = client.chat(*messages, path=PATH, **({"max_tokens": 12} | fields))
    assert reply.status == 200, reply.body
    return reply.json


def prompt_of(usage: dict[str, int]) -> int:
    return usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]


def put_together(events: list[Any]) -> dict[str, Any]:
    """The message that events are, as Anthropic's client does it."""
    message: dict[str, Any] = {}
    pieces: dict[int, str] = {}
    for event in events:
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            for name in ("text", "thinking"):
                if name in delta:
                    block[name] += delta[name]
            pieces[event["index"]] = pieces.get(event["index"], "") + delta.get("partial_json", "")
        elif event["type"] == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
    import json

    for index, said in pieces.items():
        if said:
            message["content"][index]["input"] = json.loads(said)
    return message


def test_an_answer_is_the_one_of_the_other_protocol(client: Client) -> None:
    mine = ask(client, "which protocol?", system="be brief")
    theirs = client.chat(("system", "be brief"), "which protocol?").json
    assert [block["text"] for block in mine["content"]] == [theirs["choices"][0]["message"]["content"]]
    assert mine["stop_reason"] == "max_tokens" and mine["type"] == "message" and mine["role"] == "assistant"
    assert prompt_of(mine["usage"]) == theirs["usage"]["prompt_tokens"]


def test_what_was_cached_is_exact_and_counted_beside_the_input(client: Client) -> None:
    messages, held = ["a conversation in blocks"], 0
    for number in range(4):
        reply = ask(client, *messages, temperature=2.0)
        usage = reply["usage"]
        assert usage["cache_read_input_tokens"] >= held and usage["input_tokens"] >= 1
        held = prompt_of(usage) + usage["output_tokens"]
        messages += [reply["content"][0]["text"], f"and {number}?"]
    assert reply["kvchat"]["computed"] == usage["input_tokens"]


@pytest.mark.parametrize("text", ["plainly", "think", saying(f"Let me see. {marked('Rome')}"), saying("")])
def test_streamed_events_are_the_same_message(serve: Callable[..., Client], text: str) -> None:
    client = serve(Talker(), defaults=Options())
    fields = {"max_tokens": 100, "tools": [OWN_TOOL]}
    whole = ask(client, text, **fields)
    reply = client.chat(text, path=PATH, stream=True, **fields)
    names = [
        line.removeprefix("event: ") for line in reply.body.decode().split("\n") if line.startswith("event: ")
    ]
    assert names == [event["type"] for event in reply.events]
    assert names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"]
    streamed = put_together(reply.events)
    for message in (whole, streamed):
        for block in message["content"]:
            block.pop("id", None)
        if message["content"][0]["type"] == "thinking":  # of a whole one the white space around it is dropped
            message["content"][0]["thinking"] = message["content"][0]["thinking"].strip()
    assert streamed["content"] == whole["content"]
    assert (streamed["stop_reason"], streamed["usage"]["output_tokens"]) == (
        whole["stop_reason"],
        whole["usage"]["output_tokens"],
    )


def test_a_call_is_a_block_and_its_result_goes_back(serve: Callable[..., Client]) -> None:
    client = serve(Talker(), defaults=Options())
    reply = ask(client, saying(marked("Rome")), tools=[OWN_TOOL], max_tokens=100)
    (block,) = reply["content"]
    assert (
        reply["stop_reason"] == "tool_use"
        and block["input"] == {"city": "Rome"}
        and block["name"] == "weather"
    )
    messages = [
        {"role": "user", "content": saying(marked("Rome"))},
        {"role": "assistant", "content": reply["content"]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": block["id"],
                    "content": [{"type": "text", "text": "sunny"}],
                },
                {"type": "text", "text": "and now?"},
            ],
        },
    ]
    body = {"model": "default", "messages": messages, "tools": [OWN_TOOL], "max_tokens": 50}
    assert client.post(PATH, body).status == 200
    backend: Any = client.server.service.backend
    last = backend.histories[-1]
    assert "sunny" in last[-2].text and last[-1].text == "and now?"


def test_a_stop_sequence_is_named(client: Client) -> None:
    whole = ask(client, "stop me", max_tokens=40)["content"][0]["text"]
    stop = whole[4:7]
    reply = ask(client, "stop me", max_tokens=40, stop_sequences=[stop])
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", stop)
    assert reply["content"][0]["text"] == whole[: whole.find(stop)]


def test_an_answer_that_has_begun_is_gone_on_with(client: Client) -> None:
    whole = ask(client, "begin", max_tokens=10)["content"][0]["text"]
    begun = ask(client, "begin", max_tokens=4)["content"][0]["text"]
    assert begun + ask(client, "begin", begun, max_tokens=6)["content"][0]["text"] == whole


def test_tokens_are_counted_as_they_will_be(client: Client) -> None:
    for fields in ({}, {"system": [{"type": "text", "text": "be brief"}]}, {"tools": [OWN_TOOL]}):
        counted = client.chat("how many?", path=f"{PATH}/count_tokens", **fields).json
        assert counted == {"input_tokens": prompt_of(ask(client, "how many?", **fields)["usage"])}


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "default", "messages": []},
        {"max_tokens": None},
        {"max_tokens": 0},
        {"tool_choice": {"type": "any"}},
        {"system": 5},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "source": {"type": "url", "url": "file:///x"}}],
                }
            ]
        },
        {"model": "default", "messages": [{"role": "robot", "content": "x"}]},
        {"model": "default", "messages": [{"role": "user"}]},
        {"stop_sequences": [""]},
        {"thinking": {"type": "maybe"}},
    ],
)
def test_what_is_wrong_is_said_in_the_protocols_own_form(client: Client, fields: dict[str, Any]) -> None:
    reply = client.post(PATH, {"model": "default", "messages": as_messages("hi"), "max_tokens": 5} | fields)
    assert reply.status == 400 and reply.json["type"] == "error"
    assert reply.json["error"]["type"] == "invalid_request_error" and reply.json["error"]["message"]


def test_refusals_before_the_body_have_that_form_too(serve: Callable[..., Client]) -> None:
    client = serve(key="a-key-of-some-length")
    client.key = None
    assert client.post(PATH, {}).json["error"]["type"] == "authentication_error"
    assert client.get(PATH, **{"X-Api-Key": "a-key-of-some-length"}).json["type"] == "error"
