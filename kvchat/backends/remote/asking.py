"""One question on its way to a server: how it is put, asked again where the server is busy, and how its answer ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence

import xxhash

from kvchat.backends import base
from kvchat.backends.base import Event, FinishReason, Options, Phase, Role, Status, Turn, time_of
from kvchat.backends.remote.answering import Answering, Setting, check_room, kept
from kvchat.backends.remote.connecting import Connected
from kvchat.backends.remote.dialects import dialect_for
from kvchat.backends.remote.link import Link, Streaming
from kvchat.backends.remote.question import Question
from kvchat.backends.remote.refusals import BrokenError, BusyError
from kvchat.errors import KvchatError

MAX_WAIT_S = 60.0
"""A server that asks for more patience is not asked again by itself."""
MAX_TRIES = 4
_BREATH_S = 1.0


class Asking:
    """One question. `cancel` may be called from any thread, before it is asked too."""

    def __init__(
        self, link: Link, connected: Connected, cancelled: threading.Event, show: Callable[[Status], None]
    ) -> None:
        self._link = link
        self._connected = connected
        self._cancelled = cancelled
        self._show = show
        self._streaming: Streaming | None = None

    def cancel(self) -> None:
        """End the answer; what came of it stays."""
        self._cancelled.set()
        streaming = self._streaming
        if streaming is not None:
            streaming.cancel()

    def events(self, turns: tuple[Turn, ...], options: Options) -> Generator[Event, None, None]:
        """The answer's events, `Done` last. Raises KvchatError where nothing of it came."""
        question, answering = self._put(turns, options)
        failed: KvchatError | None = None
        try:
            self._show(Status(Phase.PREFILLING))
            yield from self._asked(question, answering)
        except KvchatError as error:
            if not answering.has_begun:
                raise
            failed = error
        finally:
            self._close()
            self._show(Status(Phase.READY))
        yield from answering.rest()
        if failed is not None:
            yield kept(failed)
        is_cut = failed is not None or answering.finish is None
        if is_cut and not answering.has_begun:
            yield base.Done(base.Answer.cut_short(base.NEVER_BEGUN))
            return
        cut = FinishReason.CANCELLED if self._cancelled.is_set() else FinishReason.BROKEN
        yield base.Done(answering.answer(cut if is_cut else None))

    def _put(self, turns: tuple[Turn, ...], options: Options) -> tuple[Question, Answering]:
        """The question in the server's form, as ids where it takes them. Raises KvchatError."""
        connected = self._connected
        server, tokens, prompt = connected.server, connected.tokens, None
        if connected.sends_ids and tokens is not None:
            prompt = tokens.prompt(turns, options.think)
            check_room(prompt, server.model.context, server.model.id)
        question = Question(
            server,
            turns,
            options,
            prompt.ids if prompt else (),
            tokens.closing_ids if tokens else (),
            server.target.remote.cache_salt,
            wants_ids=prompt is None and tokens is not None,
        )
        dialect = dialect_for(server, sends_ids=prompt is not None)
        setting = Setting(server.target.where, dialect, connected.ledger, tokens, self._link.without_key)
        return question, Answering(setting, turns, options, prompt)

    def _asked(self, question: Question, answering: Answering) -> Iterator[Event]:
        """The answer's events; a server that is busy for a moment is asked again."""
        server, dialect = question.server, answering.setting.dialect
        url, body = dialect.url(server), dialect.body(question)
        for number in range(1, MAX_TRIES + 1):
            if self._cancelled.is_set():
                return
            self._streaming = self._link.stream(
                url, body, _sticky(server.target.remote.session_header, question.turns)
            )
            if self._cancelled.is_set():
                self._streaming.cancel()
            try:
                yield from answering.events(self._streaming, self._show)
            except BusyError as error:
                wait_s = error.wait_s if error.wait_s is not None else number * _BREATH_S
                if number == MAX_TRIES or wait_s > MAX_WAIT_S or answering.has_begun:
                    raise
                yield base.Notice(f"{error.message}; asked again in {wait_s:.0f} s")
                self._cancelled.wait(wait_s)
                continue
            if answering.finish is None and not self._cancelled.is_set():
                raise BrokenError(
                    f"{server.target.where} ended the answer early", "/continue goes on, or ask again"
                )
            return

    def _close(self) -> None:
        """Close what is still open of an answer that is over, or that nobody reads on."""
        streaming, self._streaming = self._streaming, None
        if streaming is not None:
            streaming.cancel()


def _sticky(name: str | None, turns: Sequence[Turn]) -> dict[str, str]:
    """The header by which a router finds the replica that holds this conversation: its beginning, hashed."""
    if not name:
        return {}
    first = next((turn.text for turn in turns if turn.role is Role.USER), "")
    system = turns[0].text if turns[0].role is Role.SYSTEM else ""
    began = "\0".join((system, first, str(time_of(turns))))
    return {name: xxhash.xxh3_128_hexdigest(began.encode(errors="replace"))}
