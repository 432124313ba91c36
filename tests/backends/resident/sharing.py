"""Clients of a resident engine for tests: in a runtime folder of their own, with nothing left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from kvchat.backends.base import Answer, Done, Options, Role, Turn
from kvchat.backends.process import ProcessBackend
from kvchat.backends.resident.asking import residents
from kvchat.backends.resident.attaching import AttachedEngine
from kvchat.config import Config

GREEDY = Options(max_tokens=8, temperature=0.0)


def user(text: str) -> Turn:
    return Turn(Role.USER, text)


def kept(config: Config, keep_alive: int) -> Config:
    """The settings for an engine that stays so many seconds."""
    return replace(config, engine=replace(config.engine, share=True, keep_alive=keep_alive))


@contextmanager
def clients(config: Config, *, ends: bool = True) -> Iterator[Callable[..., ProcessBackend]]:
    """Makes clients, and closes them; if it `ends` the engine, none of this runtime folder runs any more behind it."""
    opened: list[ProcessBackend] = []

    def client(settings: Config = config) -> ProcessBackend:
        opened.append(ProcessBackend(settings, AttachedEngine))
        return opened[-1]

    try:
        yield client
    finally:
        for one in opened:
            one.close()
        if ends:
            kill_all(config.paths.runtime)


def kill_all(runtime: Path) -> None:
    """End every engine of a runtime folder."""
    for engine in residents(runtime):
        with suppress(ProcessLookupError):
            os.kill(engine.pid, signal.SIGKILL)


def answered(backend: ProcessBackend, history: Sequence[Turn], options: Options = GREEDY) -> Answer:
    """The whole answer."""
    *_, last = backend.answer(history, options)
    assert isinstance(last, Done)
    return last.answer


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for is dead."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
