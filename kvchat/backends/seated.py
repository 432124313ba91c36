"""One of several conversations at another process's engine, all answered at once. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvchat.backends.base import Event, Options, Turn
from kvchat.backends.process import ProcessBackend


class SeatedBackend:
    """Answers at one seat of an engine that has seats; `backend` is all of it. One answer at a time."""

    def __init__(self, backend: ProcessBackend, seat: int) -> None:
        self._backend = backend
        self._seat = seat

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        """See `Backend.answer`."""
        return self._backend.answer(history, options, seat=self._seat)

    def cancel(self) -> None:
        """End what is being made at this seat; what is made at others goes on."""
        self._backend.cancel(self._seat)
