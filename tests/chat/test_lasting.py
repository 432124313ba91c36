"""What a conversation is whatever the clock, other terminals and odd texts do to it; and whose draws an answer has."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.backends.base import Notice, Options, Role, Turn, time_of
from kvchat.backends.local import LocalBackend
from kvchat.chat import conversation, writes
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.config import Config
from kvchat.errors import UsageError
from tests.scripted import ScriptedBackend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kvchat.db"


def opened(path: Path, **options: object) -> Session:
    return Session(ScriptedBackend(), Options(**options), store=Store(path))  # type: ignore[arg-type]


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(1_700_000_000.0)
    for module in (writes, conversation):
        monkeypatch.setattr(module, "time", clock)
    return clock


# Clocks


def test_the_latest_session_is_the_one_that_was_changed_last_whatever_the_clock_says(
    path: Path, clock: Clock
) -> None:
    first, second = opened(path), opened(path)
    first.ask("one")
    clock.now -= 86400
    second.ask("two")
    assert [row.title for row in Store(path).sessions()] == ["two", "one"]
    assert Store(path).session().id == second.id
    clock.now -= 86400
    first.ask("three")
    assert Store(path).session().id == first.id
    assert [row.title for row, _ in Store(path).search("three")] == ["one"]


def test_a_conversation_begins_with_its_first_message_whatever_the_clock_says(
    path: Path, clock: Clock
) -> None:
    session = opened(path)
    session.ask("one")
    began = clock.now
    clock.now -= 86400
    session.ask("two")
    assert time_of(session.history) == began
    session.edit(1, "zwei")
    list(session.edit(2, "deux"))
    assert [branch.text for branch in session.branches] == ["two", "deux"]
    again = opened(path)
    again.resume()
    assert time_of(again.history) == began


def test_a_file_of_an_earlier_version_keeps_its_order(path: Path) -> None:
    for text in ("one", "two", "three"):
        opened(path).ask(text)
    store = Store(path)
    store.database.write(lambda db: db.execute("UPDATE session SET updated = -rank, rank = 0"))
    store.database.write(lambda db: db.execute("ALTER TABLE session RENAME COLUMN rank TO other"))
    store.database.write(lambda db: db.execute("DROP INDEX session_rank"))
    store.database.write(lambda db: db.execute("ALTER TABLE session DROP COLUMN other"))
    for table, column in (
        ("session", "oneshot"),
        ("session", "summary"),
        ("exchange", "pinned"),
        ("exchange", "follows"),
    ):
        store.database.write(lambda db: db.execute(f"ALTER TABLE {table} DROP COLUMN {column}"))  # noqa: B023
    store.database.write(lambda db: db.execute("CREATE INDEX session_updated ON session(updated)"))
    store.database.write(lambda db: db.execute("PRAGMA user_version = 2"))
    store.close()
    assert [row.title for row in Store(path).sessions()] == ["one", "two", "three"]


# Names


def test_of_two_terminals_that_take_one_new_name_both_keep_their_turns(path: Path) -> None:
    first, second = opened(path), opened(path)
    first.new("holiday")
    second.new("holiday")
    first.ask("one")
    notices = [event.message for event in second.send("two") if isinstance(event, Notice)]
    assert notices == [
        "another session is called 'holiday' by now; this one has no name now: /rename gives it one"
    ]
    second.ask("three")
    assert {row.label: row.num_exchanges for row in Store(path).sessions()} == {"holiday": 1, "two": 2}
    second.rename("other")
    assert Store(path).session("other").num_exchanges == 2
    with pytest.raises(UsageError, match="another session is called 'holiday'"):
        second.rename("holiday")


# Texts


def test_half_a_character_costs_a_session_nothing(path: Path) -> None:
    session = opened(path)
    session.set_system("be \udcff")
    session.ask("one \ud800")
    session.ask("two")
    session.new("\udc80name")
    session.ask("three \udc80")
    assert [row.num_exchanges for row in Store(path).sessions()] == [1, 2]
    assert Store(path).session("\udc80name").title == "three \ufffd"
    assert len(Store(path).search("one \udc80")) == 1
    assert session.path[0].answer


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("대화의 시작입니다", "시작"),
        ("がぎぐげご と言った", "ぎぐ"),
        ("поезд йод ёлка", "ёлка"),
        ("crème brûlée", "brûlée"),
        ("ｶﾞｷﾞ", "ガギ"),
        ("हिन्दी क़लम", "क़लम"),
    ],
)
@pytest.mark.parametrize(
    ("form_stored", "form_asked"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD"), ("NFC", "NFC")]
)
def test_words_are_found_however_their_letters_are_put_together(
    path: Path, stored: str, asked: str, form_stored: str, form_asked: str
) -> None:
    import unicodedata

    opened(path).ask(unicodedata.normalize(form_stored, f"before {stored} behind"))  # type: ignore[arg-type]
    found = Store(path).search(unicodedata.normalize(form_asked, asked))  # type: ignore[arg-type]
    assert [
        unicodedata.normalize("NFKC", asked) in unicodedata.normalize("NFKC", hit.text) for _, hit in found
    ] == [True]


# Memory


def test_only_the_newest_answer_has_its_whole_prompt(path: Path) -> None:
    session = opened(path)
    for number in range(5):
        session.ask(f"number {number}")
    list(session.retry())
    list(session.compact(1))
    list(session.send("on"))
    prompts = [exchange.answer.prompt for exchange in session._tree._exchanges.values() if exchange.answer]
    assert sum(bool(prompt) for prompt in prompts) == 1
    assert session.last
    assert session.last.prompt


# Stop strings


def test_a_stop_string_that_begins_before_a_continuation_ends_the_answer(
    make_config: Callable[..., Config],
) -> None:
    config = make_config(sampling__temperature=0.0, sampling__max_tokens=40, chat__save=False)
    with Session.from_config(LocalBackend(config), config) as session:
        whole = session.ask("hello")
        session.undo()
        for size in range(2, 36):
            session.options = replace(session.options, max_tokens=size)
            first = session.ask("hello")
            stop = whole[len(first) - 1 : len(first) + 2]
            if stop in first or len(stop) < 3 or "\ufffd" in stop:
                session.undo()
                continue
            session.options = replace(session.options, max_tokens=40, stop=(stop,))
            list(session.continue_answer())
            assert session.last
            assert session.last.text == whole[: whole.index(stop)]
            assert session.history[-1].text == session.last.text
            session.options = replace(session.options, stop=())
            assert session.ask("and")
            session.undo(2)
            return
    pytest.fail("the model said nothing that could be cut")


def test_a_turn_has_no_half_of_a_character() -> None:
    session = Session(ScriptedBackend())
    session.ask("a\ud800")
    assert session.history[0] == Turn(Role.USER, "a\ufffd")
