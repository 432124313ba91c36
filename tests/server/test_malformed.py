"""Requests that are none: each gets the right status or a closed connection, and the server goes on."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kvchat.server.service import Limits
from tests.server.client import Client, as_messages, request_bytes

CHAT = "/v1/chat/completions"
PATHS = (CHAT, "/v1/completions", "/tokenize")
OK = {"model": "default", "messages": as_messages("hi"), "prompt": "hi", "max_tokens": 1}


def bodies(random_: random.Random) -> Iterator[tuple[bytes, int]]:
    """Bodies with the status that they deserve, without end."""
    wrong_values = [
        None,
        True,
        -1,
        1e400,
        2**70,
        "x",
        "\ud800",
        [],
        [[]],
        {},
        {"a": {}},
        [None],
        "\0",
        0.5,
        "9" * 500,
    ]
    fields = [
        "messages",
        "model",
        "stream",
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "seed",
        "tools",
        "prompt",
    ]
    texts = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"x"',
        b"\xff\xfe{}",
        b"{'a': 1}",
        b'{"a": NaN}',
        b"[" * 20_000,
        b"{}{}",
    ]
    texts += [
        b'{"model": "default", "messages": ' + b'{"a":' * 5000,
        b'{"model": "default", "messages": "\xc3\x28"}',
        b'{"max_tokens": ' + b"9" * 9000 + b"}",
    ]
    while True:
        if random_.random() < 0.3:
            yield random_.choice(texts), 400
            continue
        body = dict(OK, **{random_.choice(fields): random_.choice(wrong_values)})
        if random_.random() < 0.5:
            body["messages"] = [
                {"role": random_.choice(["user", "x", 7]), "content": random_.choice(wrong_values)}
            ]
        try:
            yield json.dumps(body).encode(), 0
        except ValueError:
            continue


def wires(random_: random.Random) -> Iterator[bytes]:
    """Bytes that are no request, or half of one, without end."""
    good = request_bytes(CHAT, OK)
    makers: list[Callable[[], bytes]] = [
        lambda: random_.randbytes(random_.randint(1, 400)),
        lambda: good[: random_.randint(1, len(good) - 1)],
        lambda: b"GET / HTTP/9.9\r\n\r\n",
        lambda: b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        lambda: b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        lambda: b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        lambda: b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\n{}",
        lambda: b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        lambda: b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        lambda: (
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        ),
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random_.randbytes(200),
        lambda: good.replace(b"Host", b"H\x00st"),
    ]
    while True:
        yield random_.choice(makers)()


def check_body(client: Client, path: str, body: bytes, status: int) -> None:
    reply = client.ask("POST", path, body, {"Content-Type": "application/json"})
    if status and body:
        assert reply.status == status, (body[:80], reply.body)
    assert reply.status in (200, 400, 404), (body[:200], reply.status, reply.body)
    if reply.status != 200:
        assert set(reply.json["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in reply.body.decode()


def check_wire(client: Client, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as opened:
        try:
            opened.sendall(data)
            opened.shutdown(socket.SHUT_WR)
            said = b""
            while piece := opened.recv(65536):
                said += piece
        except OSError:  # hung up on while it still sent
            return
    statuses = [int(one) for one in re.findall(rb"^HTTP/1\.1 (\d+)", said, re.MULTILINE)]
    assert all(status < 500 for status in statuses), (data[:100], said[:300])


@pytest.mark.parametrize("count", [40, pytest.param(700, marks=pytest.mark.slow)])
def test_bodies_that_are_no_request_are_refused(client: Client, count: int) -> None:
    random_ = random.Random(count)
    for _, (body, status) in zip(range(count), bodies(random_), strict=False):
        check_body(client, random_.choice(PATHS), body, status)
    assert client.chat("still there?").status == 200


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_bytes_that_are_no_http_are_refused(client: Client, count: int) -> None:
    random_ = random.Random(count)
    for _, data in zip(range(count), wires(random_), strict=False):
        check_wire(client, data)
    assert client.chat("still there?").status == 200
    assert threading.active_count() < 60


def test_a_body_that_is_too_long_is_refused_before_it_came(serve: Callable[..., Client]) -> None:
    client = serve(limits=Limits(body_bytes=1000))
    assert client.chat("x" * 2000).status == 413
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000000\r\n\r\n"
    assert b" 413 " in client.raw(head)
    chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    chunked = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 413 " in client.raw(chunked + chunk + chunk)
    assert client.chat("short").status == 200


def test_slow_senders_are_hung_up_on(serve: Callable[..., Client]) -> None:
    client = serve(limits=Limits(body_s=0.3), head_s=0.3)
    body = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"
    assert b" 408 " in client.raw(body)
    for head in (b"", b"GET /heal", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal"):
        client.raw(head)  # comes back, because the server closes
    assert client.get("/health").status == 200
    with client.open(b"GET /hea") as opened:  # a byte now and then doesn't help
        opened.settimeout(10)
        for _ in range(40):
            time.sleep(0.05)
            try:
                opened.sendall(b"l")
            except OSError:
                break
        else:
            pytest.fail("a head that never ends was waited for")


def test_connections_are_kept_for_the_next_request(client: Client) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert client.raw(request * 3 + last).count(b"HTTP/1.1 200 OK") == 4


def test_paths_and_methods_that_there_are_not_are_said_in_json(client: Client) -> None:
    assert client.get("/nowhere").status == 404 and client.get("/nowhere").json["error"]["message"]
    reply = client.get(CHAT)
    assert reply.status == 405 and reply.json["error"]["type"] == "invalid_request_error"
    assert client.get("/../../etc/passwd").status == client.get("/v1/models/../../etc/passwd").status == 404


def test_a_machine_that_asks_nothing_wrong_sees_no_warning(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.chat("quietly")
    assert not caplog.records
