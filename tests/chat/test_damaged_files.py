"""A damaged file of conversations: what is mended, and what is left of it."""

import logging
import os
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.errors import KvchatError
from tests.scripted import ScriptedBackend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "kvchat.db"


def talk(path: Path, *texts: str) -> Session:
    session = Session(ScriptedBackend(), store=Store(path))
    for text in texts:
        session.ask(text)
    return session


def is_sound(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def set_aside(path: Path) -> list[str]:
    names = [file.name for file in path.parent.iterdir() if "damaged" in file.name]
    return [name for name in names if not name.endswith(("-wal", "-shm"))]


def change(path: Path, statement: str, *values: object) -> None:
    """Change the file behind kvchat's back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute(statement, values)


def test_a_passing_error_sets_nothing_aside(path: Path) -> None:
    talk(path, "one").close()
    store = Store(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(KvchatError, match="can't use the conversations"):
            store.sessions()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [row.title for row in store.sessions()] == ["one"]
    assert set_aside(path) == []


@pytest.mark.parametrize("statement", ["SELECT 1 FROM", "SELEC", "SELECT 'a", "SELECT nope()"])
def test_a_wrong_statement_is_no_damage_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    talk(path, "one").close()
    store, mended = Store(path), []
    monkeypatch.setattr(store.database, "_mend", mended.append)
    with pytest.raises(KvchatError):
        store.database.read(lambda db: db.execute(statement))
    assert (mended, set_aside(path)) == ([], [])


# Damage


def test_a_damaged_search_index_is_made_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    talk(path, "the quick fox").close()
    change(path, "UPDATE exchange_text_data SET block = x'ff00ff' WHERE id > 1")
    with caplog.at_level(logging.WARNING, "kvchat"):
        assert [hit.text for _, hit in Store(path).search("fox")] == ["the quick fox"]
    talk(path, "a fox more").close()
    assert len(Store(path).search("fox")) == 2
    assert set_aside(path) == caplog.records == []


@pytest.mark.parametrize("table", ["exchange_text_data", "exchange_text_config", "exchange_text_idx"])
def test_an_index_of_which_a_part_is_gone_is_made_anew(path: Path, table: str) -> None:
    talk(path, "the quick fox").close()
    change(path, f"DELETE FROM sqlite_master WHERE name = '{table}'")
    talk(path, "a fox more").close()
    assert len(Store(path).search("fox")) == 2
    assert (set_aside(path), is_sound(path)) == ([], True)


@pytest.mark.parametrize("where", ["number INTEGER", "CREATE TABLE session", "ON exchange(tree)"])
@pytest.mark.parametrize("spoilt", [b"\xff\xfe", b")(", b"xx"])
def test_a_damaged_schema_is_written_anew(path: Path, where: str, spoilt: bytes) -> None:
    talk(path, "one").close()
    content = path.read_bytes()
    assert where.encode() in content
    path.write_bytes(content.replace(where.encode(), spoilt + where.encode()[len(spoilt) :], 1))
    assert [row.title for row in Store(path).sessions()] == ["one"]
    talk(path, "two").close()
    assert [hit.text for _, hit in Store(path).search("one")] == ["one"]
    assert (set_aside(path), is_sound(path)) == ([], True)


def test_a_damaged_lookup_is_made_anew_from_its_table(path: Path) -> None:
    session = talk(path, "one", "two")
    session.close()
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'exchange_tree'").fetchone()
    content = bytearray(path.read_bytes())
    content[4096 * (page - 1) : 4096 * page] = b"\xff" * 4096
    path.write_bytes(content)
    assert [len(Store(path).exchanges(row.tree)) for row in Store(path).sessions()] == [2]
    assert (set_aside(path), is_sound(path)) == ([], True)


def test_what_can_still_be_read_of_a_damaged_file_stands_in_the_new_one(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    talk(path, *(f"message {n} " + "x" * 1500 for n in range(12))).close()
    content = bytearray(path.read_bytes())
    at = content.index(b"message 6")
    page = at // 4096 * 4096
    content[page : page + 4096] = bytes(4096)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "kvchat"):
        (row,) = Store(path).sessions()
        found = len(Store(path).exchanges(row.tree))
    assert row.title.startswith("message 0")
    assert 4 <= found < 12
    assert len(set_aside(path)) == len(caplog.records) == 1
    with pytest.raises(KvchatError, match="is damaged"):
        Store(path).tree(row)
    assert is_sound(path)
