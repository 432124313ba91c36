from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from kvchat.backends.base import Options
from tests.server.client import Client
from tests.server.talker import TOOL, Talker, marked, saying

PATH = "/v1/responses"
OWN_TOOL = {"type": "function", **TOOL["function"]}


def ask(client: Client, said: Any, **fields: Any) -> Any:
    reply = client.post(PATH, {"model": "default", "input": said} | fields)
    assert reply.status == 200, reply.body
    return reply.json


def text_of(response: Any) -> str:
    return "".join(
        part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]
    )


def cached(response: Any) -> int:
    return int(response["usage"]["input_tokens_details"]["cached_tokens"])


def test_an_answer_is_the_one_of_the_chat(client: Client) -> None:
    mine = ask(client, "respond", instructions="be brief")
    theirs = client.chat(("system", "be brief"), "respond").json
    assert text_of(mine) == theirs["choices"][0]["message"]["content"]
    assert mine["status"] == "incomplete" and mine["incomplete_details"] == {"reason": "max_output_tokens"}
    assert mine["usage"]["input_tokens"] == theirs["usage"]["prompt_tokens"]


def test_a_response_is_gone_on_with_by_its_name_and_cached_to_the_token(client: Client) -> None:
    response, held = ask(client, "first of several", temperature=2.0), 0
    for number in range(4):
        held = response["usage"]["total_tokens"]
        response = ask(
            client, f"and {number}?", previous_response_id=response["id"], temperature=2.0, seed=number
        )
        assert cached(response) >= held
    assert client.get(f"{PATH}/{response['id']}").json == response


def test_items_may_be_sent_back_instead(client: Client) -> None:
    first = ask(client, "items", temperature=2.0, seed=5)
    items = [{"role": "user", "content": "items"}, *first["output"], {"role": "user", "content": "and?"}]
    by_items = ask(client, items)
    by_name = ask(client, "and?", previous_response_id=first["id"])
    assert by_items["usage"]["input_tokens"] == by_name["usage"]["input_tokens"]
    assert cached(by_items) >= first["usage"]["total_tokens"]
    assert text_of(by_items) == text_of(by_name)


def test_what_is_not_to_be_stored_or_was_deleted_is_not_there(client: Client) -> None:
    unstored = ask(client, "forget me", store=False)
    stored = ask(client, "forget me later")
    assert client.ask("DELETE", f"{PATH}/{stored['id']}").json["deleted"] is True
    for name in (unstored["id"], stored["id"], "resp_other"):
        assert client.get(f"{PATH}/{name}").status == client.ask("DELETE", f"{PATH}/{name}").status == 404
        reply = client.post(PATH, {"model": "default", "input": "x", "previous_response_id": name})
        assert reply.status == 400 and reply.json["error"]["code"] == "previous_response_not_found"


@pytest.mark.parametrize(
    "said", ["plainly", "think", saying(f"Let me see. {marked('Rome')}"), saying(marked("Oslo"))]
)
def test_streamed_events_are_the_same_response(serve: Callable[..., Client], said: str) -> None:
    client = serve(Talker(), defaults=Options())
    whole = ask(client, said, tools=[OWN_TOOL])
    reply = client.post(PATH, {"model": "default", "input": said, "stream": True, "tools": [OWN_TOOL]})
    events = reply.events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == "response.completed"
    last = events[-1]["response"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]
    assert text_of(last) == text_of(whole)
    assert [item["type"] for item in last["output"]] == [item["type"] for item in whole["output"]]
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert deltas == text_of(whole)
    opened = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    assert opened == [item["id"] for item in done]


def test_a_call_and_its_result_are_items(serve: Callable[..., Client]) -> None:
    client = serve(Talker(), defaults=Options())
    response = ask(client, saying(marked("Rome")), tools=[OWN_TOOL])
    (call,) = response["output"]
    assert call["type"] == "function_call" and json.loads(call["arguments"]) == {"city": "Rome"}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    after = ask(client, [result], previous_response_id=response["id"], tools=[OWN_TOOL])
    assert after["status"] == "completed"
    backend: Any = client.server.service.backend
    assert "sunny" in backend.histories[-1][-1].text and marked("Rome") in backend.histories[-1][-2].text


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "default", "input": ""},
        {"model": "default", "input": []},
        {"model": "default", "input": 7},
        {"model": "default", "input": [{"type": "item_reference", "id": "x"}]},
        {
            "input": [
                {"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}
            ]
        },
        {"background": True},
        {"top_logprobs": 2},
        {"include": ["message.output_text.logprobs"]},
        {"text": {"format": {"type": "json_schema"}}},
        {"tools": [{"type": "web_search"}]},
        {"tool_choice": "required"},
        {"max_output_tokens": -1},
    ],
)
def test_what_is_not_done_is_refused(client: Client, fields: dict[str, Any]) -> None:
    reply = client.post(PATH, {"model": "default", "input": "hi"} | fields)
    assert reply.status == 400 and reply.json["error"]["message"]
