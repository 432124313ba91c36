"""Four processes with two sessions each on one file, killed at random: the file stays whole and no turn is lost."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from kvchat.chat.store import Store

NUM_PROCESSES, NUM_SESSIONS = 4, 2
START_S = 60.0
SECONDS = float(os.environ.get("KVCHAT_TEST_STRESS_S", "600"))

WORKER = """
import os, sys, threading, time
from pathlib import Path
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.errors import UsageError
from tests.scripted import ScriptedBackend

def talk(name):
    session = Session(ScriptedBackend(), store=Store(Path(sys.argv[1])))
    try:
        session.resume(name)
    except UsageError:
        session.new(name)
    number = len(session.path)
    while True:
        list(session.send(f"{name} {number}"))
        assert not session._journal.notices, session._journal.notices
        os.write(1, (f"{name} {number}" + chr(10)).encode())
        number += 1
        if number % 7 == 0:
            session.store.close()
        time.sleep(0.05)

for name in sys.argv[2:]:
    threading.Thread(target=talk, args=(name,)).start()
"""


class Worker:
    """One process after the other with the same sessions; `said` are the turns of which it said that they are saved."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self.said: list[str] = []
        self.errors: list[str] = []
        self._command = [sys.executable, "-c", WORKER, str(path), *names]
        self.start()

    def start(self) -> None:
        pipe = subprocess.PIPE
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(self._command, stdout=pipe, stderr=pipe, text=True, cwd=root)
        self._num_said_before = len(self.said)
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines))
            for stream, lines in ((self.process.stdout, self.said), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def wait_until_it_talks(self) -> None:
        """Wait until this process has said that a turn is saved."""
        deadline = time.monotonic() + START_S
        while len(self.said) == self._num_said_before and not self.errors:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for reader in self._readers:
            reader.join()

    @staticmethod
    def _read(stream: object, lines: list[str]) -> None:
        with stream:  # type: ignore[attr-defined]
            lines.extend(line.rstrip("\n") for line in stream if line.endswith("\n"))  # type: ignore[attr-defined]


def run(path: Path, *, num_kills: int = 0, seconds: float = 0.0) -> None:
    """Kill one of the processes again and again, each in the middle of a conversation: so often, and for so long."""
    chance = random.Random(7)
    names = [[f"session-{n}-{m}" for m in range(NUM_SESSIONS)] for n in range(NUM_PROCESSES)]
    workers = [Worker(path, each) for each in names]
    end = time.monotonic() + seconds
    while num_kills > 0 or time.monotonic() < end:
        worker = chance.choice(workers)
        worker.wait_until_it_talks()
        time.sleep(chance.uniform(0.0, 0.3))
        worker.kill()
        assert worker.errors == []
        worker.start()
        num_kills -= 1
    for worker in workers:
        worker.wait_until_it_talks()
        worker.kill()
    check(path, workers)


def check(path: Path, workers: list[Worker]) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.execute("INSERT INTO exchange_text(exchange_text, rank) VALUES ('integrity-check', 1)")
    store = Store(path)
    assert len(store.sessions()) == NUM_PROCESSES * NUM_SESSIONS
    kept: set[str] = set()
    for row in store.sessions():
        said = store.tree(row).path(row.tip)
        texts = [exchange.user.text for exchange in said]
        assert texts == [f"{row.name} {number}" for number in range(len(said))]
        kept.update(each.user.text for each in said if each.answer and each.answer.completion)
    num_said = sum(len(worker.said) for worker in workers)
    assert num_said > NUM_PROCESSES * NUM_SESSIONS
    assert {text for worker in workers for text in worker.said} <= kept
    print(f"{num_said} turns")


def test_killed_processes_lose_no_turn(tmp_path: Path) -> None:
    run(tmp_path / "kvchat.db", num_kills=6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_processes_lose_no_turn_in_ten_minutes(tmp_path: Path) -> None:
    run(tmp_path / "kvchat.db", seconds=SECONDS)
