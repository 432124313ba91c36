from __future__ import annotations

from collections.abc import Callable

import pytest

from kvchat.errors import UsageError
from kvchat.server.guard import Door, host_name, is_loopback
from kvchat.server.serving import listen
from tests.server.client import Client

KEY = "a-key-of-some-length"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:11435",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[::1",
        "0.0.0.0",
        "169.254.0.1",
    ],
)
def test_a_name_that_is_not_this_machines_is_refused(client: Client, host: str) -> None:
    reply = client.get("/v1/models", Host=host)
    assert reply.status == 421 and "localhost" in reply.json["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "LOCALHOST", "127.0.0.1", "[::1]:11435"])
def test_names_of_this_machine_are_let_in(client: Client, host: str) -> None:
    assert client.get("/health", Host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_a_browser_are_refused_whatever_they_ask(client: Client, headers: dict[str, str]) -> None:
    before = client.server.service.turnstile.num_running
    for reply in (client.get("/v1/models", **headers), client.post("/v1/chat/completions", {}, **headers)):
        assert reply.status == 403
    preflight = client.ask(
        "OPTIONS", "/v1/chat/completions", headers=headers | {"Access-Control-Request-Method": "POST"}
    )
    assert preflight.status == 403
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    assert client.server.service.turnstile.num_running == before


def test_the_servers_own_origin_is_let_in(client: Client) -> None:
    assert client.get("/v1/models", Origin=client.url, **{"Sec-Fetch-Site": "same-origin"}).status == 200


def test_with_a_key_nobody_is_let_in_without_it(serve: Callable[..., Client]) -> None:
    client = serve(key=KEY)
    assert client.get("/v1/models").status == 200
    client.key = None
    for headers in (
        {},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": KEY},
        {"X-Api-Key": KEY[:-1]},
        {"Authorization": "Bearer ü"},
    ):
        reply = client.ask(
            "GET", "/v1/models", headers={name: value.encode() for name, value in headers.items()}
        )  # type: ignore[misc]
        assert reply.status == 401 and KEY not in reply.body.decode()
    assert client.get("/v1/models", **{"X-Api-Key": KEY}).status == 200
    assert client.get("/v1/models", Authorization=f"bearer {KEY}").status == 200
    assert client.get("/health").status == 200
    assert client.get("/metrics").status == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_hosts_than_loopback_need_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="others than this machine could ask"):
        listen(Door(host, 0))


def test_with_a_key_any_name_is_let_in_that_leads_here() -> None:
    with listen(Door("0.0.0.0", 0, KEY)) as listener:
        assert listener.getsockname()[1] > 0


def test_a_port_that_is_taken_is_said_so() -> None:
    with listen(Door("127.0.0.1", 0)) as listener, pytest.raises(UsageError, match="in use"):
        listen(Door("127.0.0.1", listener.getsockname()[1]))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_other_hosts(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("LocalHost:80", "localhost"),
        ("[::1]:80", "::1"),
        ("user@localhost", "localhost"),
        ("a/b", "a"),
        ("[", ""),
    ],
)
def test_the_name_in_a_host_header_is_found(header: str, name: str) -> None:
    assert host_name(header) == name


def test_one_client_does_not_see_what_another_asked(client: Client) -> None:
    secret = "the combination is lazy dog forty two"
    client.chat(("system", secret), "remember this", **{})
    reply = client.post(
        "/v1/chat/completions",
        {
            "model": "default",
            "messages": [{"role": "system", "content": "nosy"}, {"role": "user", "content": "why?"}],
        },
        **{"User-Agent": "another"},
    )
    assert reply.status == 200
    for word in ("combination", "lazy", "remember", "edited system prompt"):
        assert word not in reply.body.decode()
    assert "was" not in reply.json["kvchat"]
