"""The file of conversations: its locks, what is waited for, and what becomes of damage and of passing errors."""

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
