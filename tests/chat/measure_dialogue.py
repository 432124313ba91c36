"""What a long dialogue costs outside of the model: the terminal's memory, each command, each turn.

    python -m tests.chat.measure_dialogue [TURNS]

A tiny random model with 32k tokens of context answers in a child process, as in a terminal.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kvchat.backends.base import Answer, Backend, Done, Options
from kvchat.backends.process import ProcessBackend
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.ui import commands
from kvchat.ui.cache_watch import CacheWatch
from kvchat.ui.desk import Asking, Attachment, Choice, Surroundings
from kvchat.ui.tables import Look

CONTEXT = 32_768
COMMANDS = (
    "/help", "/stats", "/cache", "/cache why", "/context", "/tokens", "/branches", "/switch", "/sessions", "/export md",
    "/export json", "/fork side", "/undo 2", "/switch", "/resume talk", "/drop 90", "/resume talk", "/rename other",
)  # fmt: skip


class Quiet:
    """A desk on which nothing is shown."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.surroundings = Surroundings()
        self.look = Look(100)

    def leave(self) -> None: ...
    def copy(self, text: str) -> None: ...
    def put_back(self, text: str) -> None: ...
    def offer(self, title: str, choices: Sequence[Choice], at: int = 0) -> None: ...
    def attach(self, attachment: Attachment) -> None: ...
    def show_loading(self, backend: Backend | None) -> None: ...


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return 1e3 * (time.perf_counter() - began), result


def turn(session: Session, watch: CacheWatch, text: str) -> tuple[float, float]:
    """Milliseconds of a whole turn, and those of them that the engine spent on tokens."""

    def say() -> Answer:
        (done,) = [event for event in session.send(text) if isinstance(event, Done)]
        return done.answer

    whole, answer = timed(say)
    watch.look()
    timings = answer.timings
    return whole, timings.kv_load_ms + timings.prompt_ms + timings.predicted_ms


def measure(folder: Path, num_turns: int) -> None:
    from tests.tiny import tiny_config, tiny_folder  # torch, which the terminal never has

    model = tiny_folder(folder / "tiny", max_position_embeddings=CONTEXT)
    config = tiny_config(model, folder)
    session = Session(
        ProcessBackend(config), Options(max_tokens=8, temperature=0.0), store=Store(folder / "kvchat.db")
    )
    watch = CacheWatch(session)
    with session:
        session.new("talk")
        session.backend.info()
        for _ in range(20):
            turn(session, watch, "warming up")
        before = resident_mib()
        costs = [turn(session, watch, f"number {n}: the fox") for n in range(num_turns - 20)]
        print(f"{len(session.path)} turns, {session.last.usage.total_tokens if session.last else 0} tokens")
        print(f"the terminal's memory grew by {resident_mib() - before:.1f} MiB from {before:.0f}")
        for name, part in (("first", costs[:50]), ("last", costs[-50:])):
            outside = [whole - inside for whole, inside in part]
            print(
                f"a turn outside of the model, of the {name} 50: median {statistics.median(outside):.1f} ms,"
                f" least {min(outside):.1f} ms"
            )
        run_commands(session, folder)


def run_commands(session: Session, folder: Path) -> None:
    desk = Quiet(session)
    for line in COMMANDS:
        line = f"{line} {folder}/talk.{line.split()[-1]}" if line.startswith("/export") else line
        command, argument = commands.find(line)
        took, result = timed(lambda: command.run(desk, argument))  # noqa: B023
        assert not isinstance(result, Asking)
        print(f"{took:7.1f} ms  {line.replace(str(folder), '')}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
