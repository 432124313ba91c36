"""A proxy on loopback for tests of remotes: whatever host it is asked for, it leads to one server, and notes what it read."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.backends.remote.servers import Listener, Request, read_request


class Proxy(Listener):
    """Forwards plain HTTP and tunnels what asks for it; with a `password`, given as NAME:PASSWORD, only for who has it."""

    def __init__(self, port: int, password: str = "") -> None:
        self._port = port
        self._password = password
        super().__init__()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def talk(self, client: socket.socket) -> None:
        with client, suppress(OSError, ValueError):
            request = read_request(client)
            self.requests.append(request)
            said = request.headers.get("proxy-authorization", "").removeprefix("Basic ")
            if self._password and base64.b64decode(said).decode() != self._password:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                if request.method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    server.sendall(_forwarded(request))
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join(10)


def _forwarded(request: Request) -> bytes:
    path = "/" + request.path.split("/", 3)[3]
    lines = [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join([f"{request.method} {path} HTTP/1.1", *lines, "", ""]).encode() + request.body


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def proxying(port: int, password: str = "") -> Iterator[Proxy]:
    proxy = Proxy(port, password)
    try:
        yield proxy
    finally:
        proxy.close()
