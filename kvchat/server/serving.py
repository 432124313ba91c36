"""The server as it runs: a socket, an event loop, a backend. Prints nothing and reads no settings."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn

from kvchat.backends.base import Options
from kvchat.errors import UsageError, reason_of
from kvchat.server.app import app_of
from kvchat.server.guard import Door
from kvchat.server.protocol import MAX_HEAD_BYTES, BoundedProtocol
from kvchat.server.running import Engine
from kvchat.server.seats import Answerer
from kvchat.server.service import Limits, Service

MAX_CONNECTIONS = 256
_IDLE_S = 65
_LAST_WORDS_S = 3


def listen(door: Door) -> socket.socket:
    """A socket at the door, listening. Raises UsageError for one that can't be had, or that would be open to others."""
    if not door.is_loopback and door.key is None:
        raise UsageError(
            f"at {door.host} others than this machine could ask",
            "add --api-key-file FILE, or leave --host out",
        )
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    try:
        return socket.create_server((door.host.strip("[]"), door.port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = reason_of(error)
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        remedy = (
            "end what listens there, or take another --port" if in_use else "take another --host or --port"
        )
        raise UsageError(f"can't listen at {door.host}:{door.port}: {reason}", remedy) from None


class Server(uvicorn.Server):
    """uvicorn's, told to end by whoever runs it: signals are the program's own to handle."""

    def __init__(
        self,
        backend: Engine,
        defaults: Options,
        door: Door,
        *,
        limits: Limits | None = None,
        seats: Sequence[Answerer] = (),
        head_s: float | None = None,
    ) -> None:
        self.service = Service(backend, defaults, limits or Limits(), seats)
        protocol: Any = BoundedProtocol
        if head_s is not None:
            protocol = type("Protocol", (BoundedProtocol,), {"head_timeout_s": head_s})
        config = uvicorn.Config(
            app_of(self.service, door),
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=_LAST_WORDS_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        super().__init__(config)

    def stop(self) -> None:
        """Let it end; from any thread or signal handler."""
        self.should_exit = True
