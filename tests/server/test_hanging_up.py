from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.client import Client, as_messages, request_bytes

LONG = {"max_tokens": 25_000}


def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def is_idle(client: Client) -> bool:
    turnstile = client.server.service.turnstile
    return turnstile.num_running == turnstile.num_waiting == 0


def chat(text: str, **fields: Any) -> bytes:
    return request_bytes(
        "/v1/chat/completions", {"model": "default", "messages": as_messages(text)} | LONG | fields
    )


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_hangs_up_ends_its_answer(serve: Callable[..., Client], is_streamed: bool) -> None:
    client = serve()
    with client.open(chat(f"hang up {is_streamed}", stream=is_streamed)) as opened:
        if is_streamed:
            assert b"200 OK" in opened.recv(4096)
        assert until(lambda: client.server.service.turnstile.num_running == 1)
    assert until(lambda: is_idle(client))
    assert 'kvchat_answers_total{finish="cancelled"} 1' in client.get("/metrics").body.decode()
    assert client.chat("and another").status == 200


def test_what_was_answered_before_is_found_again(serve: Callable[..., Client]) -> None:
    client = serve()
    with client.open(chat("hang up and ask again", stream=True)) as opened:
        said = b""
        while said.count(b"data: ") < 3:  # the first is sent before anything is computed
            said += opened.recv(4096)
    assert until(lambda: is_idle(client))
    again = client.chat("hang up and ask again").json["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"] - 1


def test_a_client_that_hangs_up_while_it_waits_leaves_the_queue(serve: Callable[..., Client]) -> None:
    client = serve()
    turnstile = client.server.service.turnstile
    with client.open(chat("first", stream=True)) as first:
        first.recv(4096)
        with client.open(chat("second")):
            assert until(lambda: turnstile.num_waiting == 1)
        assert until(lambda: turnstile.num_waiting == 0) and turnstile.num_running == 1
    assert until(lambda: is_idle(client))


def test_a_socket_closed_for_writing_counts_as_hung_up(serve: Callable[..., Client]) -> None:
    client = serve()
    with client.open(chat("half closed", stream=True)) as opened:
        opened.recv(4096)
        opened.shutdown(socket.SHUT_WR)
        assert until(lambda: is_idle(client))


def test_a_reset_in_mid_stream_ends_the_answer(serve: Callable[..., Client]) -> None:
    client = serve()
    with client.open(chat("reset", stream=True)) as opened:
        opened.recv(4096)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, (1).to_bytes(4, "little") + bytes(4))
    assert until(lambda: is_idle(client))
    assert client.chat("still there?").status == 200


def test_too_many_waiting_requests_are_told_to_come_back(serve: Callable[..., Client]) -> None:
    from kvchat.server.service import Limits

    client = serve(limits=Limits(num_waiting=2))
    with client.open(chat("busy", stream=True)) as first:
        first.recv(4096)
        with client.open(chat("second")), client.open(chat("third")):
            assert until(lambda: client.server.service.turnstile.num_waiting == 2)
            refused = client.chat("fourth")
            assert refused.status == 429 and refused.json["error"]["type"] == "rate_limit_error"
            assert int(refused.headers["retry-after"]) > 0
    assert until(lambda: is_idle(client))


def test_clients_take_turns(serve: Callable[..., Client]) -> None:
    """One who asks a lot waits behind its own requests, not before those of others."""
    client = serve()
    turnstile = client.server.service.turnstile
    ended: list[str] = []

    def ask(name: str) -> None:
        body = {"model": "default", "messages": as_messages("turns")}
        assert client.post("/v1/chat/completions", body, **{"User-Agent": name}).status == 200
        ended.append(name)

    with client.open(chat("hold", stream=True)) as first:
        first.recv(4096)
        threads = []
        for waiting, name in enumerate(["greedy"] * 5 + ["modest"], 1):
            threads.append(threading.Thread(target=ask, args=(name,)))
            threads[-1].start()
            assert until(lambda waiting=waiting: turnstile.num_waiting == waiting)
    for thread in threads:
        thread.join(60)
    assert sorted(ended) == ["greedy"] * 5 + ["modest"] and "modest" in ended[:3]
