"""One loaded model and the seats at it: each conversation has its live state, within one budget. Knows no socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from kvchat.backends.base import ModelInfo, Phase, Status
from kvchat.backends.loading import Talk, load
from kvchat.backends.local import LocalBackend
from kvchat.backends.resident.rehearsal import rehearse
from kvchat.cache.base import default_ram_bytes
from kvchat.config import Config
from kvchat.engine.request import Wanting
from kvchat.engine.sequence import PASSING_PRIORITY
from kvchat.engine.worker import JobKind, Stream, Worker

E = TypeVar("E")


class SharedModel:
    """The model of `config`, loaded once, for any number of seats.

    All seats' live KV together takes no more than `live_bytes`, but for those that compute: the longest unused is let
    go of first. What it had is in blocks by then, if its calls may leave any.
    """

    def __init__(self, config: Config, *, live_bytes: int | None = None, is_shared: bool = True) -> None:
        """`live_bytes` is by default what the blocks in RAM may take. Unless it `is_shared` all seats are one user's program's,
        and what one of them does not save the others may still take up from RAM."""
        self.config = config
        self._is_shared = is_shared
        self.status = Status(Phase.STARTING)
        """How far loading has come; what is done for one seat, that seat says."""
        ram_bytes = default_ram_bytes() if config.cache.ram is None else config.cache.ram
        self._live_bytes = ram_bytes if live_bytes is None else live_bytes
        self._warnings: list[str] = []
        self._lock = threading.Lock()  # over the seats and the warnings
        self._seats: dict[Seat, None] = {}  # the longest unused first
        self._worker: Worker[Talk] = Worker(
            self._load,
            settle=rehearse,
            unload=lambda talk: talk.model.engine.close(),
            company=lambda talk: talk.model.engine.batch,
        )

    def start(self) -> None:
        """Begin to load."""
        self._worker.start()

    def seat(self, *, is_passing: bool = False) -> Seat:
        """A seat for one more conversation; what is live at one that `is_passing` goes first, and so do its blocks in RAM."""
        seat = Seat(self, self._worker, is_passing=is_passing)
        with self._lock:
            self._seats[seat] = None
            warnings = list(self._warnings)
        for warning in warnings:
            seat.warn(warning)
        return seat

    def leave(self, seat: Seat) -> None:
        """Nobody sits there any more."""
        with self._lock:
            self._seats.pop(seat, None)

    @property
    def live_bytes(self) -> int:
        """Bytes of KV that are live at all seats."""
        with self._lock:
            return sum(seat.live_bytes for seat in self._seats)

    def info(self) -> ModelInfo | None:
        """The loaded model; None before, and where it could not be loaded."""
        if self.status.phase is not Phase.READY:
            return None
        return self._worker.wait().model.info

    def make_room(self, user: Seat) -> None:
        """Let go of what is longest unused until the rest fits; never of `user`, whose turn it is, or of what is in use. On the
        worker's thread."""
        with self._lock:
            if user in self._seats:
                self._seats[user] = self._seats.pop(user)
            used = sum(seat.live_bytes for seat in self._seats)
            others = [seat for seat in self._seats if seat is not user and not seat.is_busy]
            for seat in sorted(
                others, key=lambda seat: not seat.is_passing
            ):  # stable: the longest unused first
                if used <= self._live_bytes:
                    return
                used -= seat.live_bytes
                seat.let_go()

    def shed(self) -> None:
        """Give back what memory can be had without ending an answer: blocks in RAM, and what is live and unused."""

        def job(talk: Talk, _: Callable[[], bool]) -> Iterator[None]:
            with self._lock:
                for seat in self._seats:
                    if not seat.is_busy:
                        seat.let_go()
            if talk.model.engine.cache is not None:
                talk.model.engine.cache.clear_ram()
            yield

        with suppress(Exception):  # nothing is loaded, or it is ending
            list(self._worker.run(job, JobKind.LOOK, owner=self))

    def close(self) -> None:
        """End all work and write what is to be written, within a bound."""
        self._worker.close()

    def _load(self) -> Talk:
        try:
            talk = load(self.config, self._show, self._warn)
        except BaseException as error:
            self._show(Status(Phase.FAILED, str(error)))
            raise
        self._show(Status(Phase.READY))
        return Talk(replace(talk.model, is_shared=self._is_shared), talk.sequence)

    def _show(self, status: Status) -> None:
        self.status = status

    def _warn(self, message: str) -> None:
        with self._lock:
            self._warnings.append(message)
            seats = list(self._seats)
        for seat in seats:
            seat.warn(message)


class Seat(LocalBackend):
    """One client's backend: its jobs run on the shared model, in a conversation of its own."""

    def __init__(self, shared: SharedModel, worker: Worker[Talk], *, is_passing: bool) -> None:
        super().__init__(shared.config, worker)
        self.is_passing = is_passing
        self.is_busy = False
        """Whether something runs here; what is live is in use then."""
        self._shared = shared
        self._talk: Talk | None = None
        self._is_closed = False

    @property
    def live_bytes(self) -> int:
        """Bytes of KV that are live here."""
        talk = self._talk
        if talk is None:
            return 0
        state, engine = talk.sequence.state, talk.model.engine
        return len(state.tokens) * engine.kv_bytes_per_token + sum(one.nbytes for one in state.states)

    def warn(self, message: str) -> None:
        """Have a warning told with the next answer."""
        self._notices.put(message)

    def status(self) -> Status:
        loading = self._shared.status
        if loading.phase is not Phase.READY:
            return loading
        if self._worker.is_waiting(self):
            return Status(Phase.READY, "waiting for other answers")
        return loading if self._status.phase is Phase.STARTING else self._status

    def let_go(self) -> None:
        """Hold nothing live any more; the next call takes up what is in blocks. Never while a job of this seat runs."""
        self._talk = None

    def close(self) -> None:
        """End what was asked for here; the model stays loaded for the other seats."""
        self._is_closed = True
        self.cancel()
        self._shared.leave(self)
        self.let_go()

    def _run(
        self, job: Callable[[Talk, Callable[[], bool]], Iterator[E | Wanting]], kind: JobKind = JobKind.WORK
    ) -> Stream[E]:
        def own(talk: Talk, is_cancelled: Callable[[], bool]) -> Iterator[E | Wanting]:
            before, self.is_busy = self.is_busy, True  # a look may come between what is computed ahead
            try:
                yield from job(self._seated(talk), is_cancelled)
            finally:
                self.is_busy = before

        return self._worker.run(own, kind, owner=self)

    def _seated(self, shared: Talk) -> Talk:
        """What is live of this conversation; a new beginning where nothing is."""
        self._shared.make_room(self)
        talk = self._talk or Talk(shared.model, shared.model.engine.new_sequence())
        talk.sequence.priority = PASSING_PRIORITY if self.is_passing else 0
        if not self._is_closed:
            self._talk = talk
        return talk
