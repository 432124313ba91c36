from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvchat.backends.base import Options
from kvchat.backends.local import LocalBackend
from kvchat.server.guard import Door
from kvchat.server.running import Engine
from kvchat.server.serving import Server, listen
from tests.server.client import Client
from tests.tiny import tiny_config

DEFAULTS = Options(temperature=0.0, max_tokens=12)


@contextmanager
def served(
    backend: Engine, *, key: str | None = None, defaults: Options = DEFAULTS, **settings: Any
) -> Iterator[Client]:
    """A running server over a backend, and a client of it."""
    listener = listen(Door("127.0.0.1", 0, key))
    port = listener.getsockname()[1]
    server = Server(backend, defaults, Door("127.0.0.1", port, key), **settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Client(port, server, key=key)
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="session")
def backend(long_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBackend]:
    """One engine for all servers of a run; what each test says is its own."""
    backend = LocalBackend(tiny_config(long_path, tmp_path_factory.mktemp("served"), chat__save=False))
    backend.info()  # it is loaded from here on
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def client(backend: LocalBackend) -> Iterator[Client]:
    with served(backend) as client:
        yield client


@pytest.fixture
def serve(backend: LocalBackend) -> Iterator[Callable[..., Client]]:
    """Further servers, with settings of their own."""
    with ExitStack() as stack:
        yield lambda over=None, **settings: stack.enter_context(served(over or backend, **settings))
