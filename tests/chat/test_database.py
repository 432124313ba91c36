"""The file of conversations: its locks, what is waited for, and what becomes of damage and of passing errors."""

import logging
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kvchat.chat import database
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


def in_child(code: str, path: Path) -> str:
    """What Python prints that runs `code` in a process of its own."""
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(
        command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True
    ).stdout


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


# Locks


def test_opening_the_file_again_keeps_the_locks_of_those_who_have_it_open(path: Path) -> None:
    first = talk(path, "one")
    second = Store(path)
    assert second.sessions()
    in_child(
        "import sqlite3, sys\ndb = sqlite3.connect(sys.argv[1])\ndb.execute('SELECT * FROM session').fetchall()\n"
        "db.close()",
        path,
    )  # whoever believes to be the last one takes away what was not copied into the file yet
    assert path.with_name("kvchat.db-wal").exists()
    first.ask("two")
    assert [len(second.exchanges(row.tree)) for row in second.sessions()] == [2]
    assert is_sound(path)


def test_threads_that_create_the_file_at_once_share_it(path: Path) -> None:
    sessions = [Session(ScriptedBackend(), store=Store(path)) for _ in range(6)]
    threads = [
        threading.Thread(target=session.ask, args=(f"from {n}",)) for n, session in enumerate(sessions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Store(path).sessions()) == 6
    assert {file.name for file in path.parent.iterdir()} <= {"kvchat.db", "kvchat.db-wal", "kvchat.db-shm"}
    assert is_sound(path)


class Clock:
    """Time that passes in sleep alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


def test_a_lock_that_stays_is_waited_for_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = talk(path, "one")
    clock = Clock()
    monkeypatch.setattr(database, "time", clock)
    with locked(path):
        session.ask("two")
        assert database.BUSY_S <= clock.now < database.BUSY_S + 2
        waited = clock.now
        session.ask("three")
        assert clock.now - waited < 1
    session.ask("four")
    with locked(path):
        waited = clock.now
        session.ask("five")
        assert clock.now - waited >= database.BUSY_S


def test_while_a_write_waits_others_may_read(path: Path) -> None:
    session = talk(path, "one")
    with locked(path):
        writer = threading.Thread(target=session.store.rename, args=(session.id, "named"))
        writer.start()
        assert [row.title for row in session.store.sessions()] == ["one"]
        assert writer.is_alive()
    writer.join()
    assert session.store.session("named").id == session.id


# What can't be written


def test_after_a_write_that_failed_the_session_goes_on_and_all_of_it_is_saved(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    session = talk(path, "one")
    with locked(path):
        session.ask("two")
        session.ask("three")
    session.ask("four")
    (row,) = Store(path).sessions()
    assert (row.id, row.num_exchanges) == (session.id, 4)
    kept = Store(path).tree(row).path(row.tip)
    assert [exchange.answer.text for exchange in kept if exchange.answer] == [
        "[1] you said: one", "[3] you said: two", "[5] you said: three", "[7] you said: four",
    ]  # fmt: skip


@pytest.mark.parametrize("num_before", [0, 1])
def test_an_answer_that_could_not_be_written_is_saved_with_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch, num_before: int
) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    session = talk(path, *["before"] * num_before)
    events = session.send("two")
    next(events)
    with locked(path):
        list(events)
    session.ask("three")
    row = Store(path).session()
    assert [bool(each.answer and each.answer.completion) for each in Store(path).tree(row).path(row.tip)] == [
        True
    ] * (2 + num_before)


def test_what_could_not_be_written_is_written_at_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    session = talk(path, "one")
    with locked(path):
        session.ask("two")
    session.close()
    assert Store(path).session().num_exchanges == 2


def test_a_file_that_was_deleted_is_made_anew_with_all_that_was_said(path: Path) -> None:
    session = talk(path, "one")
    for file in path.parent.iterdir():
        file.unlink()
    session.ask("two")
    assert Store(path).session().num_exchanges == 2


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


READING = """
import os, sys
from pathlib import Path
from kvchat.chat.store import Store
if os.getuid() == 0:
    os.setuid(65534)
store = Store(Path(sys.argv[1]))
print([row.title for row in store.sessions()], [hit.text for _, hit in store.search("one")], store.search("nothing"))
try:
    store.rename(store.session().id, "named")
except Exception as error:
    print(type(error).__name__)
print(store.session().name)
"""


@pytest.mark.parametrize("is_open", [False, True])
def test_what_can_only_be_read_is_listed(path: Path, is_open: bool) -> None:
    session = talk(path, "one")
    if not is_open:
        session.close()
    for folder in (path.parent, *list(path.parents)[1:5]):
        folder.chmod(0o755)
    path.parent.chmod(0o555)
    for file in path.parent.iterdir():
        file.chmod(0o444)
    try:
        assert in_child(READING, path).splitlines() == ["['one'] ['one'] []", "KvchatError", "None"]
    finally:
        path.parent.chmod(0o755)


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
