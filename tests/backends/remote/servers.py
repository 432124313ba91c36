"""Servers on loopback for tests of remotes: one that misbehaves as it is told, and llama.cpp's own."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HELLO = b"\x16\x03"  # of TLS


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What is sent back: pieces of a body, each as it is, then the end: `close`, `reset` or `hang`."""

    pieces: Sequence[bytes] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})
    length: int | None = None
    end: str = "close"
    pause_s: float = 0.0
    repeat: int = 1


def as_json(value: Any, status: int = 200, **headers: str) -> Reply:
    body = json.dumps(value).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply([body], status, {"Content-Type": "application/json"} | named, len(body))


def as_events(*events: Any, done: bool = True, **rest: Any) -> Reply:
    pieces = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    return Reply([*pieces, *([b"data: [DONE]\n\n"] if done else [])], **rest)


class Listener(ABC):
    """Talks with each who connects, in a thread of their own, until it is closed; notes what was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    @abstractmethod
    def talk(self, connection: socket.socket) -> None:
        """Hear one out."""

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()


class Server(Listener):
    """Answers each request with what `answer` gives for it, on a connection of its own; over TLS, if that is given."""

    def __init__(self, answer: Callable[[Request], Reply], tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.tls = tls
        self.closed_early = threading.Event()
        self._stop = threading.Event()
        super().__init__()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._stop.set()
        super().close()

    def talk(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError):
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            request = read_request(connection)
            self.requests.append(request)
            self._send(connection, self.answer(request))

    def _send(self, connection: socket.socket, reply: Reply) -> None:
        length = {} if reply.length is None else {"Content-Length": str(reply.length)}
        lines = [
            f"{name}: {value}" for name, value in (reply.headers | length | {"Connection": "close"}).items()
        ]
        connection.sendall("\r\n".join([f"HTTP/1.1 {reply.status} X", *lines, "", ""]).encode())
        try:
            for piece in [*reply.pieces] * reply.repeat:
                connection.sendall(piece)
                if reply.pause_s:
                    self._stop.wait(reply.pause_s)
        except OSError:
            self.closed_early.set()
            raise
        if reply.end == "hang":
            connection.settimeout(20)
            with suppress(OSError):
                connection.recv(1)
            self.closed_early.set()
        elif reply.end == "reset":
            linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def read_request(connection: socket.socket) -> Request:
    data = b""
    while b"\r\n\r\n" not in data:
        data += (piece := connection.recv(65536))
        if not piece or data.startswith(_HELLO):
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            raise ValueError("nothing was asked")
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    method, path, _ = first.split(" ")
    return Request(method, path, headers, body)


@contextmanager
def serving(answer: Callable[[Request], Reply], tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(answer, tls)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def llama_server(model: Path, *, context: int = 4096) -> Iterator[str]:
    """The URL of llama.cpp's own server with a GGUF file, which ends with the process."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.use_jinja, params.warmup = context, 1, True, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = 0
    server = xllamacpp.Server(params)
    yield server.listening_address
    del server
