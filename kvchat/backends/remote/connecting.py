"""The way to a server: found in a thread of its own, which lets the terminal's first key go before. Asks nothing of a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvchat.backends.remote.ledger import Ledger
from kvchat.backends.remote.link import Link
from kvchat.backends.remote.server import Kind, Server, connect
from kvchat.config import Config
from kvchat.errors import KvchatError

if TYPE_CHECKING:
    from kvchat.backends.remote.tokens import Tokens

HEAD_START_S = 0.4
"""So long nothing is loaded unless somebody waits: a thread that loads modules takes its time from the terminal's."""
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Connected:
    """A server that answered, what is known of its model's tokens, and what it was sent."""

    server: Server
    tokens: Tokens | None
    ledger: Ledger
    sends_ids: bool


class Connecting:
    """A connection on its way."""

    def __init__(self, work: Callable[[], Connected]) -> None:
        self._is_wanted = threading.Event()
        self._done = threading.Event()
        self._result: Connected | BaseException | None = None
        threading.Thread(target=self._run, args=(work,), name="kvchat-connect", daemon=True).start()

    @property
    def has_failed(self) -> bool:
        """Whether nothing came of it."""
        return isinstance(self._result, BaseException)

    def is_over(self, cancelled: threading.Event) -> bool:
        """Wait for its end; False if that was `cancelled` first."""
        self._is_wanted.set()
        while not self._done.wait(_POLL_S):
            if cancelled.is_set():
                return False
        return True

    def result(self) -> Connected:
        """What came of it; waits. Raises what went wrong."""
        self._is_wanted.set()
        self._done.wait()
        if isinstance(self._result, BaseException):
            raise self._result
        assert self._result is not None
        return self._result

    def _run(self, work: Callable[[], Connected]) -> None:
        self._is_wanted.wait(HEAD_START_S)
        try:
            self._result = work()
        except BaseException as error:
            self._result = error
        self._done.set()


def connected(link: Link, config: Config, notify: Callable[[str], None]) -> Connected:
    """Find out what a remote is, and whether token ids can be sent to it. Raises KvchatError."""
    server = connect(link)
    tokens = _tokens_of(server, link, config, notify) if link.target.remote.tokenizer else None
    takes_ids = server.kind is not Kind.ANTHROPIC and link.target.remote.send != "text"
    return Connected(server, tokens, Ledger(server.features.remedy), takes_ids and tokens is not None)


def _tokens_of(server: Server, link: Link, config: Config, notify: Callable[[str], None]) -> Tokens | None:
    """The model's tokenizer, if one is named and the server agrees with it."""
    from kvchat.backends.remote.tokens import disagreement, load_tokens

    remote = server.target.remote
    tokens = load_tokens(server, config, notify)
    differs = disagreement(tokens, server, link)
    if differs is None:
        return tokens
    if remote.send == "ids":
        raise KvchatError(
            f"{remote.tokenizer} is not the tokenizer of {server.model.id}: {differs}", "name another"
        )
    notify(f"the conversation goes out as text: {differs}")
    return None
