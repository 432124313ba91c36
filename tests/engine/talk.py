"""An engine with one conversation, as most tests of it want it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kvchat.engine.drafting import Drafter
from kvchat.engine.engine import Engine
from kvchat.engine.foresight import Foresight
from kvchat.engine.request import EngineEvent, Request
from kvchat.engine.speculation import Guessed, Speculation
from kvchat.models.kv_state import KVState
from kvchat.models.loaded import LoadedModel


class Talk(Engine):
    """Everything is asked of the one sequence `live`; with `guessing` by a drafter and a foresight of the test's own."""

    def __init__(
        self, loaded: LoadedModel, *, guessing: tuple[Drafter, Foresight] | None = None, **options: Any
    ) -> None:
        super().__init__(loaded, **options)
        self.live = self.new_sequence()
        if guessing is not None and self.loaded.rule.continuation == "chunk":
            self.live.speculation = Speculation(*guessing)

    @property
    def state(self) -> KVState:
        return self.live.state

    @property
    def drafts(self) -> Guessed:
        return self.live.drafts

    def generate(  # type: ignore[override]
        self, request: Request, *asked: Callable[[], bool]
    ) -> Iterator[EngineEvent]:
        return super().generate(self.live, request, *asked)

    def warm_up(self) -> None:  # type: ignore[override]
        super().warm_up(self.live)

    def store(self, *arguments: Any, **options: Any) -> None:  # type: ignore[override]
        live = () if arguments and arguments[0] is self.live else (self.live,)
        super().store(*live, *arguments, **options)
