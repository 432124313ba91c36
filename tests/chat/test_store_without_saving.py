"""A store that saves nothing, or can't."""

import sqlite3
from pathlib import Path

import pytest

from kvchat.backends.base import Options
from kvchat.chat.schema import MIGRATIONS
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.errors import KvchatError
from tests.scripted import ScriptedBackend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "kvchat.db"


def talk(path: Path, *texts: str, name: str | None = None) -> Session:
    session = Session(ScriptedBackend(), store=Store(path))
    session.new(name)
    for text in texts:
        session.ask(text)
    return session


def test_a_file_of_a_newer_program_is_left_alone(path: Path) -> None:
    talk(path, "hello").close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(KvchatError, match="newer kvchat"):
        Store(path).sessions()
    assert [file.name for file in path.parent.iterdir() if "damaged" in file.name] == []


def test_a_folder_that_can_not_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KvchatError, match="can't use the conversations"):
        Store(tmp_path / "file" / "kvchat.db").sessions()


def test_without_saving_what_is_there_can_be_read_and_nothing_is_written(path: Path) -> None:
    talk(path, "hello").close()
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    session = Session(ScriptedBackend(), store=Store(path, saves=False))
    session.resume()
    session.ask("more")
    session.fork("side")
    assert [row.label for row in session.store.sessions()] == ["side", "hello"]
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_without_saving_what_was_said_stands_beside_what_the_file_holds(path: Path) -> None:
    talk(path, "kept").close()
    session = Session(ScriptedBackend(), store=Store(path, saves=False))
    session.ask("one")
    session.ask("two")
    session.options = Options(max_tokens=1)
    session.ask("slow 2")
    assert [row.title for row in session.store.sessions()] == ["one", "kept"]
    assert session.store.totals().asked_tokens == 1 + 1 + 6 + 12
    here = session.id
    session.resume(session.store.sessions()[1].id)
    assert [exchange.user.text for exchange in session.path] == ["kept"]
    session.resume(here)
    assert [exchange.user.text for exchange in session.path] == ["one", "two", "slow 2"]
    assert session.history[1].tokens == (0, 1, 2)


def test_without_saving_no_folder_is_made(path: Path) -> None:
    session = Session(ScriptedBackend(), store=Store(path, saves=False))
    session.ask("hello")
    assert session.store.sessions()
    assert not path.parent.exists()
