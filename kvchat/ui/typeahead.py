"""Has computed ahead what is being typed, while nothing else is going on, and says how far that is. Draws nothing.

Lives in the event loop's thread; what waits for the backend is done in threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from kvchat.backends.base import Ahead, Phase, Reach
from kvchat.chat.anticipation import Anticipation, Ask
from kvchat.chat.session import Session
from kvchat.config import UiConfig
from kvchat.errors import KvchatError
from kvchat.ui.battery import battery_percent
from kvchat.ui.turns import Turns, sent_text

_POLL_S = 0.1
_POWER_S = 30.0
_DRAWN_S = 0.01
"""In which a key is drawn, before anything is done about it."""


class TypeAhead:
    """Follows the input through `message`, what Enter would send now; `redraw` is called when `sign` has changed."""

    def __init__(
        self,
        session: Session,
        config: UiConfig,
        turns: Turns,
        message: Callable[[], str],
        redraw: Callable[[], None],
    ) -> None:
        self.sign = ""
        self._session = session
        self._config = config
        self._turns = turns
        self._message = message
        self._redraw = redraw
        self._anticipation = Anticipation()
        self._place: object = None
        self._news = asyncio.Event()
        self._power: tuple[float, int | None] = (
            -_POWER_S,
            None,
        )  # when it was looked at, and what was left of the battery

    def on_key(self, _: object = None) -> None:
        """The input has changed."""
        self._news.set()

    async def work(self) -> None:
        """Follow the input, for ever."""
        if self._config.type_ahead == "off":
            return
        while True:
            wait_s = self._step(time.monotonic())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), wait_s)
                await asyncio.sleep(_DRAWN_S)
            self._news.clear()

    def _step(self, now: float) -> float | None:
        """Ask for what is due; after how long to look again, None for at the next key."""
        message = self._message()
        if not self._is_free:
            self._anticipation.forget()
            self._show("")
            return _POLL_S if message else None
        if not message or self._place != self._session.place:
            if self._anticipation.has_asked:  # sent, deleted, or typed somewhere else by now
                self._anticipation.forget()
                self._turns.start(self._drop)
            self._place = self._session.place
            self._show("")
            if not message:
                return None
        most = self._furthest(now)
        if most is None:
            return _POWER_S
        ask = self._anticipation.next(message, now, most)
        if ask is not None:
            self._turns.start(self._compute, ask)
        return self._anticipation.wait_s(now)

    @property
    def _is_free(self) -> bool:
        """Whether nothing runs, waits, or is being prepared."""
        status = self._session.backend.status()
        return self._turns.is_idle and status.phase is Phase.READY and not status.detail

    def _furthest(self, now: float) -> Reach | None:
        """How far to go at most by the settings; on its battery the machine begins no answers, and below a bound nothing."""
        if now - self._power[0] >= _POWER_S:
            self._power = (now, battery_percent())
        left = self._power[1]
        if left is not None and left < self._config.type_ahead_battery:
            return None
        is_prefill = self._config.type_ahead == "prefill" or left is not None
        return Reach.WHOLE if is_prefill else Reach.BEGUN

    def _compute(self, ask: Ask) -> None:
        """In a thread, for it waits."""
        with suppress(KvchatError):  # whoever sends it is told
            for event in self._session.ahead(sent_text(ask.text), ask.reach):
                self._turns.hand(self._on_progress, ask, event)
        self._turns.hand(self._on_end, ask)

    def _drop(self) -> None:
        """In a thread, for it waits."""
        with suppress(KvchatError):
            for _ in self._session.ahead("", Reach.TYPED):
                pass

    def _on_progress(self, ask: Ask, event: Ahead) -> None:
        if self._is_free and not event.is_resting and ask.text == self._message():
            is_ready = event.done >= event.total and (event.begun or ask.reach is Reach.WHOLE)
            self._show("ready" if is_ready else f"typed {event.done}/{event.total}")

    def _on_end(self, ask: Ask) -> None:
        self._anticipation.end(ask)
        self._news.set()  # there may be more by now

    def _show(self, sign: str) -> None:
        if sign != self.sign:
            self.sign = sign
            self._redraw()
