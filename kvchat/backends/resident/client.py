"""The engine's side of one attached client: its calls run at its seat, and end with it. Knows no other client."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import IO

from kvchat.backends.engine_process import EngineProcess
from kvchat.backends.resident.seats import Seat


class AttachedClient(EngineProcess):
    """Serves one client at a seat that is already there, until `calls` ends."""

    def __init__(self, calls: IO[bytes], replies: IO[bytes], seat: Seat) -> None:
        super().__init__(calls, replies)
        self._backend = seat
        self._seat = seat
        self._backend_ready.set()

    def serve(self) -> None:
        """Read calls until the other side is gone; then end what it had asked for."""
        self.report_in_background()
        try:
            with suppress(OSError):
                for line in self._calls:
                    with suppress(ValueError, KeyError, TypeError):  # cut off in mid-line, or no call
                        self._handle(json.loads(line))
        finally:
            self._is_ending = True
            self._seat.close()
