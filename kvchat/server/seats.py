"""Which of the backend's seats answers a request: one that holds its conversation live, if there is one. In one event loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from kvchat.backends.base import Event, Options, Turn


class Answerer(Protocol):
    """What answers one conversation at a time; `Backend` says what each means."""

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]: ...

    def cancel(self) -> None: ...


class Seats:
    """The seats that are free, the longest unused first, and what each was asked last."""

    def __init__(self, answerers: Sequence[Answerer]) -> None:
        self.num_seats = len(answerers)
        self._free: list[tuple[Answerer, tuple[Turn, ...]]] = [(one, ()) for one in answerers]

    def take(self, turns: Sequence[Turn]) -> Answerer:
        """The free seat whose last conversation goes on with `turns` for longest; else the one unused for longest."""
        best = max(self._free, key=lambda one: _num_shared(one[1], turns))  # the first of equals
        self._free.remove(best)
        return best[0]

    def give_back(self, answerer: Answerer, turns: tuple[Turn, ...]) -> None:
        """It has answered `turns`, and is free."""
        self._free.append((answerer, turns))


def _num_shared(last: Sequence[Turn], turns: Sequence[Turn]) -> int:
    """How many turns two conversations begin with alike; only a system prompt counts for nothing, many have the same."""
    pairs = enumerate(zip(last, turns, strict=False))
    count = next((at for at, (one, other) in pairs if one != other), min(len(last), len(turns)))
    return count if count > 1 else 0
