"""/cache, /context and /stats in a dialogue, and what the toolbar and the totals of all time get from the cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.backends.base import Options
from kvchat.backends.inspection import CacheTotals
from kvchat.backends.local import LocalBackend
from kvchat.cache.stats import TierUse
from kvchat.chat.session import Session
from kvchat.chat.store import FILE_NAME, Store
from kvchat.config import Config
from kvchat.errors import UsageError
from kvchat.ui.cache_watch import CacheWatch, cache_part
from kvchat.ui.commands import find
from kvchat.ui.tables import Look
from tests.scripted import ScriptedBackend
from tests.ui.terminal import Terminal


class Desk:
    def __init__(self, session: Session, look: Look) -> None:
        self.session = session
        self.look = look

    def leave(self) -> None:
        raise AssertionError

    def copy(self, text: str) -> None:
        raise AssertionError


def done(desk: Desk, text: str) -> str:
    command, argument = find(text)
    return command.run(desk, argument)


def test_commands_tell_of_a_real_conversation(make_config: Callable[..., Config]) -> None:
    config = make_config()
    with Session.from_config(LocalBackend(config), config) as session:
        desk = Desk(session, Look(80))
        assert done(desk, "/cache why") == "nothing has been answered yet"
        assert "asked" in done(desk, "/cache")
        session.set_system("You are a helpful assistant, and so on and so on.")
        session.options = Options(max_tokens=8, temperature=0.0)
        session.ask("hello world")
        session.ask("the quick brown fox")
        shown = done(desk, "/cache")
        assert "were remembered and not computed again" in shown
        lines = shown.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("message "))
        assert [line.split()[0] for line in lines[start + 1 : start + 6]] == [
            "system",
            "user",
            "answer",
            "user",
            "answer",
        ]
        assert "█" in lines[start + 1]
        last = session.last
        assert last
        assert f"from token {last.cache.diverged_at} of {last.usage.prompt_tokens} on: new text" in done(
            desk, "/cache why"
        )
        assert f"of {session.backend.info().context} tokens" in done(desk, "/context")
        stats = done(desk, "/stats")
        assert "turn" in stats
        assert "memory: weights" in stats
        with pytest.raises(UsageError, match="/cache why"):
            done(desk, "/cache when")


def test_an_edited_system_prompt_is_the_cause_and_both_texts_are_shown(
    make_config: Callable[..., Config],
) -> None:
    config = make_config()
    with Session.from_config(LocalBackend(config), config) as session:
        session.options = Options(max_tokens=4, temperature=0.0)
        session.set_system("be brief and kind and so on")
        session.ask("hello")
        session.set_system("be brief and wordy and so on")
        session.ask("hello again")
        why = done(Desk(session, Look(80)), "/cache why")
    assert "edited system prompt" in why
    assert "was  " in why
    assert "│kind" in why.replace("│ kind", "│kind")
    assert "│wordy" in why.replace("│ wordy", "│wordy")


def test_what_was_stored_is_added_once_to_the_totals_of_all_time(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = make_config()
    with Session.from_config(LocalBackend(config), config) as session:
        session.options = Options(max_tokens=8, temperature=0.0)
        watch = CacheWatch(session)
        for _ in range(3):
            session.ask("the quick brown fox jumps over the lazy dog")
            watch.look()
        assert watch.view
        process = watch.view.process
    store = Store(tmp_path / "data" / FILE_NAME)
    with closing(store):
        totals = store.totals()
    assert totals.asked_tokens == process.asked_tokens > 0
    assert totals.live_tokens == process.live_tokens > 0
    assert totals.stored_bytes == process.stored_bytes > 0


def test_an_engine_that_was_started_again_counts_from_zero() -> None:
    backend = ScriptedBackend()
    session = Session(backend)
    watch = CacheWatch(session)
    session.ask("one two three")
    watch.look()
    assert session.store.totals().stored_bytes == 300
    assert watch.view
    watch.view = replace(watch.view, process=CacheTotals(asked_tokens=10**6, stored_bytes=10**6))
    watch.look()
    assert session.store.totals().stored_bytes == 600


def test_the_toolbars_part_shows_the_budgets_that_there_are() -> None:
    view = ScriptedBackend().cache(())
    assert cache_part(view) == "cache RAM 0% disk 0%"
    assert (
        cache_part(replace(view, tiers=(TierUse("ram", 250_000, 10**6), view.tiers[1])))
        == "cache RAM 25% disk 0%"
    )
    assert cache_part(replace(view, mode="off", tiers=())) == "cache off"


@pytest.mark.parametrize("columns", [40, 100])
def test_the_dialogue_shows_map_context_and_chart(tmp_path: Path, columns: int) -> None:
    terminal = Terminal(tmp_path, columns=columns, rows=40).ready()
    terminal.enter("one two three")
    terminal.settle()
    terminal.enter("four five")
    terminal.settle()
    terminal.enter("/cache")
    terminal.wait_for("all time")
    assert any(row.startswith("answer") and "B 0.0" in row for row in terminal.rows)
    terminal.enter("/context")
    terminal.wait_for("largest:")
    terminal.enter("/stats")
    terminal.wait_for("memory: weights")
    assert not any("␛" in row for row in terminal.rows)
    if columns == 100:
        terminal.until(lambda: "cache RAM 0% disk" in terminal.visible[-1], "the toolbar's part")
        assert "hit " in terminal.visible[-1]
        assert "ctx " in terminal.visible[-1]
    terminal.leave()


def test_without_colours_nothing_is_coloured(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, environ={"NO_COLOR": "1"}).ready()
    terminal.enter("one two three")
    terminal.settle()
    begun = len(terminal.raw)
    terminal.enter("/cache")
    terminal.wait_for("all time")
    assert not any(
        f"\x1b[{code}m".encode() in terminal.raw[begun:] for code in (*range(30, 38), *range(90, 98))
    )
    terminal.leave()


def test_plain_says_it_in_words(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "--plain", columns=100)
    terminal.wait_for(">")
    terminal.enter("one two three")
    terminal.wait_for("cached 0/3")
    terminal.enter("/cache")
    terminal.wait_for("user, 3 tokens, live 3")
    assert not any(sign in row for row in terminal.rows for sign in "█▓▒░")
    terminal.type("\x04")
    assert terminal.end() == 0
