"""A plain client of the server under test: requests over real sockets, server-sent events taken apart."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from kvchat.server.serving import Server


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events' data but for the mark of the end."""
        lines = self.body.decode().split("\n")
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [json.loads(one) for one in data if one != "[DONE]"]


class Client:
    def __init__(self, port: int, server: Server, *, key: str | None = None) -> None:
        self.port = port
        self.server = server
        self.key = key

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        own = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            connection.request(method, path, body, own | (headers or {}))
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, named, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, value: Any, **headers: str) -> Reply:
        return self.ask(
            "POST", path, json.dumps(value).encode(), {"Content-Type": "application/json"} | headers
        )

    def chat(
        self, *messages: str | tuple[str, str], path: str = "/v1/chat/completions", **fields: Any
    ) -> Reply:
        """Ask a chat: texts are the user's and the model's in turn."""
        return self.post(path, {"model": "default", "messages": as_messages(*messages)} | fields)

    @contextmanager
    def open(self, data: bytes) -> Iterator[socket.socket]:
        """A socket on which this was sent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as opened:
            opened.sendall(data)
            yield opened

    def raw(self, data: bytes) -> bytes:
        """What comes back for these very bytes, up to the end of the connection."""
        with self.open(data) as opened:
            pieces = []
            while piece := opened.recv(65536):
                pieces.append(piece)
        return b"".join(pieces)


def as_messages(*messages: str | tuple[str, str]) -> list[dict[str, str]]:
    named: list[dict[str, str]] = []
    roles = ("user", "assistant")
    for message in messages:
        said = sum(one["role"] != "system" for one in named)
        role, text = message if isinstance(message, tuple) else (roles[said % 2], message)
        named.append({"role": role, "content": text})
    return named


def request_bytes(path: str, value: Any, *, port: int = 0, **headers: str) -> bytes:
    """A whole request as it goes over the wire."""
    body = json.dumps(value).encode()
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
