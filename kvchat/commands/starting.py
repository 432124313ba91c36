"""Starting up, while a signal may come at any moment: nothing is held yet, so the program simply ends."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from kvchat.config import Config
from kvchat.errors import UsageError, reason_of

if TYPE_CHECKING:
    from kvchat.backends.base import Backend
    from kvchat.backends.local import LocalBackend


def remote_backend(config: Config) -> Backend | None:
    """The backend of a model that a remote serves; None for a local one. Raises UsageError."""
    from kvchat.remotes import target_of

    target = target_of(config.model.name, config.remotes)
    if target is None:
        return None
    if config.model.offline:
        raise UsageError(f"{target.where} is reached over the network", "leave --offline out")
    from kvchat.backends.remote.backend import RemoteBackend

    return RemoteBackend(config, target)


def oneshot_backend(config: Config) -> Backend:
    """What answers once: a remote, the engine that terminals share, or a local model in this process. Raises UsageError."""
    return remote_backend(config) or shared_backend(config, is_passing=True) or local_backend(config)


def shared_backend(config: Config, *, is_passing: bool = False) -> Backend | None:
    """The engine that terminals share, which the first of them starts; None where the settings or the system want none.

    A client that `is_passing` asks and leaves; terminals that stay go before it.
    """
    from kvchat.backends.resident.identity import can_share, place_of

    if not can_share(config):
        return None
    try:
        place_of(config)
    except OSError as error:
        logging.getLogger("kvchat").warning(f"this terminal has an engine of its own: {reason_of(error)}")
        return None
    from kvchat.backends.process import ProcessBackend
    from kvchat.backends.resident.attaching import Attaching

    return ProcessBackend(config, Attaching(is_passing=is_passing))


def dialogue_backend(config: Config) -> Backend:
    """What answers a dialogue: a remote, or a local model in a process that is shared or its own. Raises UsageError."""
    backend = remote_backend(config) or shared_backend(config)
    if backend is not None:
        return backend
    from kvchat.backends.process import ProcessBackend

    return ProcessBackend(config)


def local_backend(config: Config) -> LocalBackend:
    """A backend in this process, asked for by the main thread."""
    with ending_at_once():
        from kvchat.backends.local import LocalBackend

        return LocalBackend(config)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Signals that end the program do so without an exception. While modules are imported one would be lost in a
    callback now and then, and where torch's C++ calls Python it would abort the process."""

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        os._exit(128 + signum)

    signums = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: handler for signum in signums if callable(handler := signal.getsignal(signum))}
    for signum in before:
        signal.signal(signum, end)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
