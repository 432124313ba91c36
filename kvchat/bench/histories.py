"""Backends of one model whose KV of a history is where it is asked for: live, in RAM, on disk, or nowhere."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from kvchat.backends.base import Answer, Backend, Role, Turn
from kvchat.backends.process import ProcessBackend
from kvchat.bench.measure import ask, isolated, one_by_one
from kvchat.config import Config

MODES = ("live", "ram", "disk", "none")
_MESSAGE = "Number {}: please tell me in one short sentence what all of this text is about."


class Histories:
    """One backend keeps KV in RAM, one on disk alone, one computes everything anew."""

    def __init__(self, in_ram: Backend, on_disk: Backend, without: Backend) -> None:
        self.in_ram = in_ram
        self.on_disk = on_disk
        self.without = without
        self._asked = 0

    def compute(self, history: Sequence[Turn]) -> None:
        """Compute a history once wherever it is kept."""
        for backend in (self.in_ram, self.on_disk):
            ask(backend, [*history, self._message()])

    def ask(self, mode: str, history: Sequence[Turn]) -> Answer:
        """The first token behind a computed history and a new message."""
        backend = {"live": self.in_ram, "ram": self.in_ram, "disk": self.on_disk, "none": self.without}[mode]
        if mode in ("ram", "disk"):  # the arena forgets the history
            ask(backend, [Turn(Role.SYSTEM, "Something else."), self._message()])
        answer = ask(backend, [*history, self._message()])
        report = answer.cache
        num_found = {"live": report.live, "none": 1, **report.tiers}.get(mode, 0)
        assert num_found > 0 or "faster" in report.reason, f"the history was not found in {mode}: {report}"
        return answer

    def _message(self) -> Turn:
        self._asked += 1
        return Turn(Role.USER, _MESSAGE.format(self._asked))


@contextmanager
def opened(config: Config) -> Iterator[Histories]:
    """The backends with a folder of their own; both are gone afterwards."""
    with ExitStack() as leave:
        folder = Path(leave.enter_context(tempfile.TemporaryDirectory(prefix="kvchat-bench-")))
        apart = one_by_one(replace(config, paths=replace(config.paths, cache=folder)))
        settings = (isolated(apart), isolated(apart, ram=0, disk=2**31), isolated(apart, mode="off"))
        backends = [leave.enter_context(_started(each)) for each in settings]
        for backend in backends:  # which load side by side
            backend.info()
        yield Histories(*backends)


@contextmanager
def _started(config: Config) -> Iterator[Backend]:
    with closing(ProcessBackend(config)) as backend:  # engines in one process would be in each other's way
        backend.start()
        yield backend
