"""Follows the engine: what it does, which model it is, and when the next prompt can be prepared. Draws nothing.

Lives in the event loop's thread; what has to wait is done in threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from kvchat.backends.base import Backend, ModelInfo, Phase, Status
from kvchat.chat.session import Session
from kvchat.errors import EngineDiedError, KvchatError
from kvchat.ui.render import loading_row, sanitize
from kvchat.ui.turns import Turns

_POLL_S = 0.1
_QUIET_S = 2.0  # of idle time before a title is made


class Audience(Protocol):
    """Who is told what becomes of the engine."""

    def redraw(self) -> None:
        """What the engine does has changed."""

    def show_error(self, error: KvchatError) -> None:
        """It ended, or can't be loaded again."""

    def load(self) -> None:
        """The model is about to stand, and the first answer may come soon. Called in a thread."""

    def on_model(self) -> None:
        """The model stands, and `info` tells of it."""

    def on_no_model(self, error: KvchatError) -> None:
        """It could never be loaded."""


class EngineWatch:
    """The engine of a session as the dialogue sees it. `info` is the model's, None before it was ever loaded; `is_typing`
    says whether the user is about to ask something."""

    def __init__(
        self,
        session: Session,
        turns: Turns,
        audience: Audience,
        is_typing: Callable[[], bool] = lambda: False,
    ) -> None:
        self.info: ModelInfo | None = None
        self._session = session
        self._turns = turns
        self._audience = audience
        self._is_typing = is_typing
        self._incoming: Backend | None = None
        self._stage = ("", time.monotonic())  # of loading, and since when
        self._drawn: Status | None = None
        self._second = 0
        self._prepared: tuple[object, ...] | None = None  # the place that was prepared last
        self._quiet_since = time.monotonic()

    async def work(self) -> None:
        """Look at the engine, for ever."""
        shown: Status | None = None
        backend = self._session.backend
        while True:
            if backend is not self._session.backend:
                backend, shown = self._session.backend, None
            status = backend.status()
            self._follow(backend, shown, status)
            if self._is_due(status):
                self._audience.redraw()
            shown = status
            await asyncio.sleep(_POLL_S)

    def _is_due(self, status: Status) -> bool:
        """Whether to draw: what is done has changed, or the clock of what loads shows another second."""
        if self._incoming is not None or status.phase is Phase.LOADING:
            before, self._second = self._second, int(time.monotonic() - self._stage[1])
            return status != self._drawn or self._incoming is not None or before != self._second
        return status != self._drawn  # it may have changed and changed back meanwhile

    # What there is to see

    def status(self) -> Status:
        """What the engine does now; that this was drawn is noted."""
        self._drawn = self._session.backend.status()
        return self._drawn

    def name(self, otherwise: str) -> str:
        """What the model is called in one word; the last part of `otherwise` before that is known."""
        return sanitize(Path(self.info.name if self.info else otherwise).name)

    def loading(self, columns: int) -> str:
        """How far loading is, of the model or of the one that takes its place; empty when nothing loads."""
        backend = self._incoming or self._session.backend
        status, now = backend.status(), time.monotonic()
        if status.phase is not Phase.LOADING or (self.info is not None and not self._incoming):
            return ""
        if status.detail != self._stage[0]:
            self._stage = (status.detail, now)
        return loading_row(status, now - self._stage[1], columns)

    # What may be asked of it

    def show_loading(self, backend: Backend | None) -> None:
        """Follow another backend that is being loaded; may be called from any thread."""
        self._incoming, self._stage = backend, ("", time.monotonic())

    def stop_loading(self) -> bool:
        """Give up the other backend that is being loaded; whether there is one."""
        backend, self._incoming = self._incoming, None
        if backend is not None:
            self._turns.start(backend.close)
        return backend is not None

    def prepare_again(self) -> None:
        """What was live may be so no longer: prepare the next prompt when nobody waits."""
        self._prepared = None

    def give_up(self, error: KvchatError) -> None:
        """The model can't be loaded: say so, or that it never could."""
        if self.info is not None:
            self._audience.show_error(error)
        else:
            self._audience.on_no_model(error)

    # How it is done

    def _follow(self, backend: Backend, shown: Status | None, status: Status) -> None:
        """Ask for the model when it stands, start an engine that ended, and prepare what one has moved to."""
        changed = shown is None or status.phase is not shown.phase
        if changed and status.phase in (Phase.READY, Phase.FAILED):
            self._turns.start(self._learn_of_model, backend)
        if status.phase is Phase.STARTING:
            # of one that ends while it answers, the answer tells
            if changed and shown and shown.phase in (Phase.READY, Phase.LOADING) and not self._turns.running:
                ended = status.detail or "the engine ended"
                self._audience.show_error(
                    EngineDiedError(f"{ended} and is started again; the conversation is kept")
                )
            backend.start()
        if status.phase is not Phase.READY:
            self.prepare_again()
        elif self._turns.is_idle and self._prepared != (place := self._session.place):
            self._prepared = place
            self._turns.start(self._prepare)
        self._look_for_quiet(status)

    def _look_for_quiet(self, status: Status) -> None:
        """Have a title made once nobody has typed and nothing has run for a while; give it up as soon as somebody types."""
        now, session = time.monotonic(), self._session
        if session.is_titling:
            if self._is_typing():
                session.backend.cancel()
            return
        is_quiet = status.phase is Phase.READY and not status.detail and self._turns.is_idle
        if not is_quiet or self._is_typing():
            self._quiet_since = now
        elif session.wants_title and now - self._quiet_since >= _QUIET_S:
            self._quiet_since = now
            self._turns.start(self._title)

    def _learn_of_model(self, backend: Backend) -> None:
        """In a thread: what the model is, and what rendering needs, before the first answer comes."""
        try:
            self._audience.load()
            self.info = backend.info()
            self._turns.hand(self._audience.on_model)
        except EngineDiedError as error:
            if (
                backend.status().phase is Phase.FAILED
            ):  # otherwise it is started again, and asked when it stands
                self._turns.hand(self._audience.show_error, error)
        except KvchatError as error:
            self._turns.hand(self.give_up, error)

    def _title(self) -> None:
        """In a thread, for it waits: what the conversation is about."""
        with suppress(KvchatError):
            self._session.make_title()
            self.prepare_again()

    def _prepare(self) -> None:
        """In a thread, for it waits: what the next prompt begins with, while the user reads and types."""
        with suppress(KvchatError):  # the next message meets it too
            self._session.prepare()
