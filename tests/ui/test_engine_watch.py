"""What the dialogue does about its engine, with a scripted one: nothing is drawn here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from kvchat.backends.base import Event, ModelInfo, Options, Phase, Status, Turn
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.chat.titling import TITLE_REQUEST
from kvchat.errors import EngineDiedError, KvchatError, ModelUnavailableError
from kvchat.ui import engine_watch
from kvchat.ui.engine_watch import EngineWatch
from kvchat.ui.turns import Turns
from tests.scripted import ScriptedBackend


class Mortal(ScriptedBackend):
    """One that is as a test says: `phase` is what it does, `error` what asking for its model raises."""

    def __init__(self, phase: Phase, error: KvchatError | None = None) -> None:
        super().__init__()
        self.phase = phase
        self.why = ""
        self.error = error
        self.num_starts = 0
        self.num_asked = 0

    def start(self) -> None:
        self.num_starts += 1

    def status(self) -> Status:
        return Status(self.phase, self.why)

    def info(self) -> ModelInfo:
        self.num_asked += 1
        if self.error is not None:
            raise self.error
        return super().info()


class Told:
    """What the watch has told of its engine."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.hopeless: list[KvchatError] = []

    def redraw(self) -> None:
        pass

    def load(self) -> None:
        pass

    def on_model(self) -> None:
        pass

    def show_error(self, error: KvchatError) -> None:
        self.errors.append(error.message)

    def on_no_model(self, error: KvchatError) -> None:
        self.hopeless.append(error)


def watched(backend: Mortal, *steps: Callable[[], object]) -> tuple[EngineWatch, Told]:
    """A watch over `backend` while the steps were taken, each after the one before was seen."""
    told = Told()
    nobody: Any = None
    session = Session(backend)
    turns = Turns(session, nobody, nobody)
    watch = EngineWatch(session, turns, told)

    async def watching() -> None:
        tasks = [asyncio.create_task(turns.work()), asyncio.create_task(watch.work())]
        await asyncio.sleep(0.25)
        for step in steps:
            step()
            await asyncio.sleep(0.25)
        for task in tasks:
            task.cancel()

    asyncio.run(watching())
    return watch, told


class Titled(Mortal):
    """One that is asked for titles; `keys` are pressed when it is."""

    def __init__(self) -> None:
        super().__init__(Phase.READY)
        self.asked: list[str] = []

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        self.asked.append(history[-1].text)
        said = "slow 500" if history[-1].text == TITLE_REQUEST else history[-1].text
        return super().answer([*history[:-1], replace(history[-1], text=said)], options)


def test_a_title_is_made_when_all_is_quiet_and_given_up_as_soon_as_somebody_types(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_watch, "_QUIET_S", 0.3)
    backend, keys = Titled(), ["typing"]
    session = Session(backend, store=Store())
    session.titles = True
    session.ask("hello")
    turns = Turns(session, cast(Any, None), cast(Any, None))
    watch = EngineWatch(session, turns, Told(), lambda: bool(keys))

    async def until(is_so: Callable[[], bool]) -> None:
        for _ in range(200):
            if is_so():
                return
            await asyncio.sleep(0.05)
        raise AssertionError

    async def watching() -> None:
        tasks = [asyncio.create_task(turns.work()), asyncio.create_task(watch.work())]
        await asyncio.sleep(1)
        assert backend.asked == ["hello"], "nobody is asked while somebody types"
        keys.clear()
        await until(lambda: session.is_titling)
        keys.append("w")
        await until(lambda: not session.is_titling)
        assert session.wants_title, "it is asked again another time"
        for task in tasks:
            task.cancel()

    asyncio.run(watching())


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.READY])
@pytest.mark.parametrize("why", ["", "the engine ended (killed by SIGKILL)"])
def test_an_engine_that_ends_is_started_again_whatever_it_did(phase: Phase, why: str) -> None:
    backend = Mortal(phase)

    def end() -> None:
        backend.phase, backend.why = Phase.STARTING, why

    _, told = watched(backend, end)
    assert backend.num_starts > 0
    said = why or "the engine ended"
    assert told.errors == [f"{said} and is started again; the conversation is kept"]


def test_one_that_ends_twice_in_a_row_is_started_again_each_time() -> None:
    backend = Mortal(Phase.STARTING)
    starts: list[int] = []
    look = lambda: starts.append(backend.num_starts)  # noqa: E731
    watched(backend, look, look, look)
    assert starts[0] < starts[1] < starts[2]


def test_an_engine_killed_just_as_it_gets_ready_does_not_end_the_dialogue() -> None:
    backend = Mortal(Phase.READY, EngineDiedError("the engine ended (killed by SIGKILL)"))

    def start_again() -> None:
        backend.phase, backend.error = Phase.STARTING, None

    watch, told = watched(backend, start_again, lambda: setattr(backend, "phase", Phase.READY))
    assert told.hopeless == []
    assert cast(ModelInfo, watch.info).name == "scripted"
    assert backend.num_asked == 2


def test_an_engine_that_is_given_up_is_said_and_the_dialogue_goes_on() -> None:
    error = EngineDiedError("the engine ended 3 times while it loaded")
    _, told = watched(Mortal(Phase.FAILED, error))
    assert (told.errors, told.hopeless) == ([error.message], [])


def test_a_model_that_can_not_be_had_ends_the_dialogue() -> None:
    error = ModelUnavailableError("there is no such model")
    _, told = watched(Mortal(Phase.FAILED, error))
    assert (told.errors, told.hopeless) == ([], [error])
