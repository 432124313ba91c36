"""Rows with values of the wrong kind, and trees that lead nowhere: what can be read is, and the others are there."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kvchat.backends.base import FinishReason, Options
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.chat.warmth import warmth
from kvchat.errors import KvchatError
from tests.scripted import ScriptedBackend


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session that will be broken, and one that stays sound."""
    path = tmp_path_factory.mktemp("whole") / "kvchat.db"
    with Session(ScriptedBackend(), Options(temperature=0.5, stop=("a",)), store=Store(path)) as session:
        for name in ("broken", "sound"):
            session.new(name)
            for text in ("one", "two", "three"):
                session.ask(text)
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path))


def change(path: Path, statement: str, *values: object) -> None:
    """Change the rows behind kvchat's back; `:nth` is the id of that exchange of the broken session."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        ids = [row for (row,) in db.execute("SELECT id FROM exchange ORDER BY number")]
        names = {name: ids[at] for at, name in enumerate(("first", "second", "third"))}
        db.execute(statement, {**names, **{f"v{n}": value for n, value in enumerate(values)}})


def check_sound(path: Path) -> None:
    store = Store(path)
    assert {row.label for row in store.sessions()} == {"broken", "sound"}
    row = store.session("sound")
    assert [exchange.user.text for exchange in store.tree(row).path(row.tip)] == ["one", "two", "three"]
    assert warmth(store, store.sessions(), {("x", "y"): 1})
    store.totals()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM exchange WHERE id = :second",
        "UPDATE exchange SET parent = 'nobody' WHERE id = :first",
        "UPDATE exchange SET parent = :third WHERE id = :first",
        "UPDATE exchange SET parent = id WHERE id = :second",
        "UPDATE exchange SET id = x'00ff' WHERE id = :third",
        "UPDATE session SET tip = 'nothing' WHERE name = 'broken'",
    ],
)
def test_a_tree_that_does_not_lead_to_its_root_is_named_and_the_others_are_there(
    path: Path, statement: str
) -> None:
    change(path, statement)
    check_sound(path)
    session = Session(ScriptedBackend(), store=Store(path))
    with pytest.raises(KvchatError, match="is damaged: messages are missing"):
        session.resume("broken")
    session.resume("sound")
    assert session.ask("four") == "[7] you said: four"
    store = Store(path)
    store.delete(store.session("broken").id)
    assert [row.name for row in store.sessions()] == ["sound"]


def test_a_branch_that_is_damaged_leaves_the_other_ones(path: Path) -> None:
    session = Session(ScriptedBackend(), store=Store(path))
    session.resume("broken")
    session.undo(2)
    session.ask("another")
    change(path, "UPDATE exchange SET parent = 'nobody' WHERE id = :second")
    session.resume("broken")
    assert [exchange.user.text for exchange in session.path] == ["one", "another"]
    assert [branch.text for branch in session.branches] == ["another"]


VALUES = [None, "", "{", "[1]", "[" * 9000, "x" * 5000, 7, -1, 1e308, float("inf"), b"\xff\xfe\x00", b"abc"]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize(
    "column",
    ["options", "statistics", "answer", "reasoning", "finish", "model", "user", "created", "tokens", "depth"],
)
def test_a_value_of_the_wrong_kind_is_left_out(path: Path, column: str, value: object) -> None:
    if value is None and column not in ("statistics", "finish"):
        return  # the table refuses it
    change(path, f"UPDATE exchange SET {column} = :v0 WHERE id = :second", value)
    check_sound(path)
    session = Session(ScriptedBackend(), store=Store(path))
    session.resume("broken")
    assert len(session.path) == 3
    assert session.path[1].options.stop in ((), ("a",))
    for kind in ("md", "json", "html"):
        session.export(kind)
    session.ask("four")


def test_options_and_figures_of_the_wrong_kind_are_left_out_one_by_one(path: Path) -> None:
    change(
        path,
        "UPDATE exchange SET options = :v0",
        '{"temperature": 0.5, "seed": "x", "top_k": 1e999, "stop": ["b", 7]}',
    )
    change(
        path,
        "UPDATE exchange SET statistics = :v0",
        '{"usage": {"prompt_tokens": 7, "x": 1}, "timings": {"ttft_ms": NaN}}',
    )
    change(path, "UPDATE exchange SET finish = 'new'")
    session = Session(ScriptedBackend(), store=Store(path))
    session.resume("broken")
    assert session.path[0].options == Options(temperature=0.5, stop=("b",))
    assert session.last
    assert (session.last.usage.prompt_tokens, session.last.timings.ttft_ms) == (7, 0)
    assert session.last.finish_reason is FinishReason.CANCELLED


@pytest.mark.parametrize("ids", [b"abc", "text", b"\xff\xff\xff\xff", b""])
def test_ids_that_can_be_none_leave_the_text(path: Path, ids: object) -> None:
    change(path, "UPDATE token_ids SET ids = :v0", ids)
    session = Session(ScriptedBackend(), store=Store(path))
    session.resume("broken")
    turn = session.history[1]
    assert (turn.text, turn.tokens, turn.tokenizer) == ("[1] you said: one", None, None)


@pytest.mark.parametrize("column", ["title", "tree", "system", "model", "created", "updated", "rank", "name"])
@pytest.mark.parametrize("value", VALUES[1:], ids=lambda value: repr(value)[:12])
def test_a_session_with_wrong_values_hides_no_other(path: Path, column: str, value: object) -> None:
    change(path, f"UPDATE session SET {column} = :v0 WHERE name = 'broken'", value)
    store = Store(path)
    assert len(store.sessions()) == 2
    assert len(store.exchanges(store.session("sound").tree)) == 3
    assert len(store.search("two")) >= 1


@pytest.mark.parametrize("value", VALUES[1:], ids=lambda value: repr(value)[:12])
def test_a_total_that_is_no_number_counts_nothing(path: Path, value: object) -> None:
    change(path, "UPDATE counter SET value = :v0", value)
    assert Store(path).totals().asked_tokens in (0, 7, -1)
