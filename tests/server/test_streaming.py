from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvchat.backends.base import Options
from tests.server.client import Client
from tests.server.talker import Talker

PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "TEXT"}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "TEXT"}], "max_tokens": 50},
    "/v1/responses": {"input": "TEXT"},
    "/v1/completions": {"prompt": "TEXT"},
}


def body(path: str, text: str, **fields: Any) -> dict[str, Any]:
    """A request of this path's form that says a text."""
    values: dict[str, Any] = {"model": "default"} | fields
    for name, value in PATHS[path].items():
        is_list = isinstance(value, list)
        values[name] = [{"role": "user", "content": text}] if is_list else text if value == "TEXT" else value
    return values


@pytest.fixture
def talker(serve: Callable[..., Client]) -> Client:
    return serve(Talker(), defaults=Options())


@pytest.mark.parametrize("path", PATHS)
def test_an_engine_that_dies_in_mid_answer_is_said_in_the_stream(talker: Client, path: str) -> None:
    reply = talker.post(path, body(path, "break 3", stream=True))
    assert reply.status == 200 and b"word2" in reply.body
    said = next(event for event in reversed(reply.events) if "error" in event or event.get("type") == "error")
    assert "the engine ended" in str(said)
    assert talker.post(path, body(path, "and again")).status == 200


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("text", "status"), [("overflow", 400), ("oom", 503), ("die", 503), ("fail", 503)])
def test_what_goes_wrong_before_an_answer_has_a_status_of_its_own(
    talker: Client, path: str, text: str, status: int, is_streamed: bool
) -> None:
    reply = talker.post(path, body(path, text, stream=is_streamed))
    assert reply.status == status and reply.json["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_reasoning_is_told_apart_from_the_answer(talker: Client, path: str) -> None:
    whole, streamed = (
        talker.post(path, body(path, "think", stream=is_streamed)) for is_streamed in (False, True)
    )
    assert b"hm 0 hm 1 hm 2" in whole.body
    assert b"you said" in whole.body and streamed.body.index(b"hm 2") < streamed.body.index(b"you said")
