"""Who is answered next: clients take turns, each in the order of its own requests; bounded. Runs in one event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from kvchat.server.refusals import RefusedError

MAX_WAITING = 64
MAX_WAITING_OF_ONE = 32


class Turnstile:
    """Lets `max_running` requests through at a time. A client that asks a lot waits behind its own requests."""

    def __init__(
        self, *, max_running: int = 1, max_waiting: int = MAX_WAITING, max_of_one: int = MAX_WAITING_OF_ONE
    ) -> None:
        self._free = max_running
        self._max_running = max_running
        self._max_waiting, self._max_of_one = max_waiting, max_of_one
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def widen(self, max_running: int) -> None:
        """So many may run from now on, no fewer than before."""
        for _ in range(max_running - self._max_running):
            self._max_running += 1
            self.leave()

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def num_running(self) -> int:
        """Requests that were let through and have not left."""
        return self._max_running - self._free

    async def enter(self, client: str) -> None:
        """Wait for one's turn; whoever came through has to `leave`. Raises RefusedError where too many wait already."""
        if self._free:
            self._free -= 1
            return
        own = self._waiting.get(client, ())
        if self.num_waiting >= self._max_waiting or len(own) >= self._max_of_one:
            raise RefusedError(429, "too many requests wait already", code="queue_full", wait_s=2)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()  # it was let through in the very moment that it went away
            else:
                self._drop(client, place)
            raise

    def leave(self) -> None:
        """Make room for the next: the client that was let through longest ago."""
        while self._waiting:
            client, places = self._waiting.popitem(last=False)
            place = places.popleft()
            if places:
                self._waiting[client] = places
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def _drop(self, client: str, place: asyncio.Future[None]) -> None:
        places = self._waiting.get(client)
        if places is not None and place in places:
            places.remove(place)
            if not places:
                del self._waiting[client]
