"""An engine's process with the scripted backend in place of a model: it is there at once, and says the same each time."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, cast

from kvchat.backends.base import Event, Options, Phase, Reach, Status, Turn
from kvchat.backends.engine_process import EngineProcess
from kvchat.config import Config
from kvchat.engine.worker import Stream, Worker
from tests.scripted import ScriptedBackend


class Scripted:
    """The scripted backend, in a worker's thread as a model is."""

    def __init__(self) -> None:
        self._worker = Worker(ScriptedBackend)

    def status(self) -> Status:
        return Status(Phase.READY)

    def answer(self, history: Sequence[Turn], options: Options, keeping: object) -> Stream[Event]:
        return self._worker.run(lambda backend, _: backend.answer(history, options))

    warm = prepare = answer

    def ahead(
        self, history: Sequence[Turn], options: Options, reach: Reach, keeping: object
    ) -> Stream[Event]:
        return Stream.of_nothing()

    def close(self) -> None:
        self._worker.close()


class ScriptedEngine(EngineProcess):
    """Serves the terminal that started it."""

    def _open(self, config: Config, has_seats: bool) -> None:
        self._backend = cast(Any, Scripted())
        self._backend_ready.set()


if __name__ == "__main__":
    ScriptedEngine(sys.stdin.buffer, os.fdopen(os.dup(1), "wb")).serve()
    os._exit(0)
