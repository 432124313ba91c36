from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.backends.base import Reach
from kvchat.chat.session import Session
from kvchat.chat.tree import Totals
from kvchat.config import UiConfig
from kvchat.ui import typeahead
from kvchat.ui.battery import battery_percent
from kvchat.ui.cost import typed_text
from kvchat.ui.turns import Turns
from kvchat.ui.typeahead import TypeAhead
from tests.scripted import ScriptedBackend


class Dialogue:
    """A type-ahead over a scripted backend, and the input that it follows."""

    def __init__(self, **settings: object) -> None:
        self.backend = ScriptedBackend()
        self.backend.start()
        self.session = Session(self.backend)
        self.turns = Turns(self.session, self, self)  # type: ignore[arg-type]
        self.text = ""
        self.num_drawn = 0
        config = replace(UiConfig(), **settings)  # type: ignore[arg-type]
        self.ahead = TypeAhead(self.session, config, self.turns, lambda: self.text, self.redraw)

    def redraw(self) -> None:
        self.num_drawn += 1

    def on_turn(self, *_: object) -> None:
        """Nothing is shown."""

    on_event = on_failure = on_turn_end = on_result = on_turn

    async def type(self, text: str, until: Callable[[], bool]) -> None:
        self.text = text
        self.ahead.on_key()
        ends = time.monotonic() + 10
        while not until():
            assert time.monotonic() < ends, self.backend.typed
            await asyncio.sleep(0.01)

    def run(self, script: Callable[[], object]) -> None:
        async def whole() -> None:
            works = [asyncio.create_task(work) for work in (self.turns.work(), self.ahead.work())]
            await script()  # type: ignore[misc]
            for work in works:
                work.cancel()

        asyncio.run(whole())


@pytest.fixture(autouse=True)
def on_mains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typeahead, "battery_percent", lambda: None)


def test_what_is_typed_is_computed_and_behind_a_pause_its_answer_begun() -> None:
    dialogue = Dialogue(type_ahead="auto")

    async def script() -> None:
        await dialogue.type("hello there", lambda: ("hello there", Reach.BEGUN) in dialogue.backend.typed)
        await dialogue.type("hello there", lambda: dialogue.ahead.sign == "ready")

    dialogue.run(script)
    assert [reach for _, reach in dialogue.backend.typed] == list(Reach)
    assert not dialogue.session.path


def test_a_text_that_is_deleted_is_dropped() -> None:
    dialogue = Dialogue()

    async def script() -> None:
        await dialogue.type("hello", lambda: bool(dialogue.backend.typed))
        await dialogue.type("", lambda: dialogue.backend.typed[-1] == ("", Reach.TYPED))

    dialogue.run(script)
    assert dialogue.ahead.sign == ""


def test_with_prefill_no_answer_is_begun() -> None:
    dialogue = Dialogue(type_ahead="prefill")

    async def script() -> None:
        await dialogue.type("hello", lambda: dialogue.ahead.sign == "ready")
        await asyncio.sleep(0.8)

    dialogue.run(script)
    assert dialogue.backend.typed[-1] == ("hello", Reach.WHOLE)


def test_when_it_is_off_nothing_is_asked_for() -> None:
    dialogue = Dialogue(type_ahead="off")

    async def script() -> None:
        dialogue.text = "hello"
        await asyncio.sleep(0.5)

    dialogue.run(script)
    assert dialogue.backend.typed == []


@pytest.mark.parametrize(("left", "reach"), [(80, Reach.WHOLE), (30, None)])
def test_on_a_battery_no_answer_is_begun_and_below_a_bound_nothing_computed(
    left: int, reach: Reach | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typeahead, "battery_percent", lambda: left)
    dialogue = Dialogue()

    async def script() -> None:
        dialogue.text = "hello"
        dialogue.ahead.on_key()
        await asyncio.sleep(1.2)

    dialogue.run(script)
    assert (dialogue.backend.typed[-1][1] if dialogue.backend.typed else None) is reach


def test_nothing_is_asked_for_while_an_answer_is_made() -> None:
    dialogue = Dialogue()

    async def script() -> None:
        await asyncio.sleep(0)
        dialogue.turns.add("slow 40")
        await dialogue.type("hello", lambda: dialogue.turns.running is not None)
        await asyncio.sleep(0.4)
        assert dialogue.turns.running and not dialogue.backend.typed
        await dialogue.type("hello", lambda: bool(dialogue.backend.typed))

    dialogue.run(script)


def test_what_it_cost_and_gained_is_said_in_numbers() -> None:
    assert typed_text(Totals()) == ""
    totals = Totals(ahead_tokens=120, ahead_used_tokens=97, ahead_s=0.8, ahead_saved_s=1.2)
    assert typed_text(totals) == (
        "computed while you typed 120 tokens in 0.80 s: 97 used, 23 wasted, 1.20 s less to wait"
    )


def supply(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content + "\n")


def test_the_battery_counts_while_the_machine_runs_on_it(tmp_path: Path) -> None:
    assert battery_percent(tmp_path / "nothing") is None
    supply(tmp_path / "AC", type="Mains", online="0")
    assert battery_percent(tmp_path) is None
    supply(tmp_path / "mouse", type="Battery", scope="Device", status="Discharging", capacity="3")
    supply(tmp_path / "BAT0", type="Battery", status="Discharging", capacity="62")
    assert battery_percent(tmp_path) == 62
    (tmp_path / "BAT0" / "status").write_text("Charging\n")
    assert battery_percent(tmp_path) is None
