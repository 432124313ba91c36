"""HTTP to one server: what becomes of connections that it closes while nobody asks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import IO

import pytest

from kvchat.backends.remote.link import Link
from kvchat.errors import KvchatError
from kvchat.remotes import RemoteConfig, Target

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Answers so many requests on each of its connections, and closes them as the next one comes."""

    def __init__(self, *answers: int) -> None:
        self.num_requests = 0
        self._answers = answers
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        for num_answers in self._answers:
            connection, _ = self._socket.accept()
            with connection, connection.makefile("rb") as requests:
                for number in range(num_answers + 1):
                    if not _is_read(requests):
                        break
                    self.num_requests += 1
                    if number < num_answers:
                        connection.sendall(ANSWER)

    def close(self) -> None:
        self._socket.close()


def _is_read(requests: IO[bytes]) -> bool:
    """Read one whole request; False where the client has gone."""
    num_bytes = 0
    while (line := requests.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        num_bytes = int(value) if name.lower() == b"content-length" else num_bytes
    return bool(line) and len(requests.read(num_bytes)) == num_bytes


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(*request.param)
    yield server
    server.close()


@pytest.mark.parametrize("server", [(1, 1)], indirect=True)
def test_a_kept_connection_that_the_server_closes_costs_no_message(server: Server) -> None:
    link = Link(Target("here", RemoteConfig(server.url)))
    assert link.call("POST", f"{server.url}/v1/x", {"a": 1}) == {}
    assert link.call("POST", f"{server.url}/v1/x", {"a": 2}) == {}
    assert server.num_requests == 3
    link.close()


@pytest.mark.parametrize("server", [(0, 1)], indirect=True)
def test_a_server_that_hangs_up_on_a_new_connection_is_asked_once(server: Server) -> None:
    link = Link(Target("here", RemoteConfig(server.url)))
    with pytest.raises(KvchatError, match="can't be reached"):
        link.call("POST", f"{server.url}/v1/x", {"a": 1})
    assert server.num_requests == 1
    link.close()


@pytest.mark.parametrize("server", [(1, 0, 1)], indirect=True)
def test_a_server_that_hangs_up_twice_is_not_asked_a_third_time(server: Server) -> None:
    link = Link(Target("here", RemoteConfig(server.url)))
    link.call("POST", f"{server.url}/v1/x", {"a": 1})
    with pytest.raises(KvchatError, match="can't be reached"):
        link.call("POST", f"{server.url}/v1/x", {"a": 2})
    assert server.num_requests == 3
    link.close()
