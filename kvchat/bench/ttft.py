"""Time to the first token against the length of the history: computed whole, and with it live, in RAM, on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvchat.backends.base import Backend, Role, Turn
from kvchat.backends.local import LocalBackend
from kvchat.bench.measure import Spread, ask, english, isolated, table
from kvchat.config import Config

LENGTHS = (250, 500, 1000, 4000)
MESSAGE = "Number {}: please tell me in one short sentence what all of this text is about."
MODES = ("live", "ram", "disk", "none")


@dataclass(frozen=True, slots=True)
class Row:
    """One history length in tokens; milliseconds to the first token by where the history was found."""

    history: int
    message: int
    ttft_ms: dict[str, Spread]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        spreads = {mode: spread.to_json() for mode, spread in self.ttft_ms.items()}
        return {"history_tokens": self.history, "message_tokens": self.message, "ttft_ms": spreads}


class _Bench:
    """Two backends of the same model: one keeps KV in RAM, one on disk alone; both may compute everything anew."""

    def __init__(self, config: Config, folder: Path, leave: ExitStack) -> None:
        apart = replace(config, paths=replace(config.paths, cache=folder))
        self.in_ram = self._open(isolated(apart), leave)
        self.on_disk = self._open(isolated(apart, ram=0, disk=2**31), leave)
        self.without = self._open(isolated(apart, mode="off"), leave)
        self._asked = 0

    def row(self, length: int, repeats: int) -> Row:
        """Measure one history length; the modes take turns, so that all see the same machine."""
        history = [Turn(Role.SYSTEM, english(length, self.in_ram.count))]
        for backend in (self.in_ram, self.on_disk):
            ask(backend, [*history, self._message()])
        found: dict[str, list[float]] = {mode: [] for mode in MODES}
        new = 0
        for _ in range(repeats):
            for mode in MODES:
                ttft_ms, num_computed = self._measure(mode, history)
                found[mode].append(ttft_ms)
                new = num_computed if mode == "live" else new
        return Row(length, new, {mode: Spread.of(values) for mode, values in found.items()})

    def _measure(self, mode: str, history: Sequence[Turn]) -> tuple[float, int]:
        backend = {"live": self.in_ram, "ram": self.in_ram, "disk": self.on_disk, "none": self.without}[mode]
        if mode in ("ram", "disk"):
            ask(
                backend, [Turn(Role.SYSTEM, "Something else."), self._message()]
            )  # the arena forgets the history
        answer = ask(backend, [*history, self._message()])
        report = answer.cache
        tier = {"live": report.live, "ram": report.ram, "disk": report.disk, "none": 1}[mode]
        assert tier > 0 or "faster" in report.reason, f"the history was not found in {mode}: {report}"
        return answer.timings.ttft_ms, answer.timings.prompt_n

    def _message(self) -> Turn:
        self._asked += 1
        return Turn(Role.USER, MESSAGE.format(self._asked))

    @staticmethod
    def _open(config: Config, leave: ExitStack) -> Backend:
        backend = LocalBackend(config)
        leave.callback(backend.close)
        backend.info()
        return backend


def measure(config: Config, *, lengths: Sequence[int] = LENGTHS, repeats: int = 5) -> Iterator[Row]:
    """A row a history length, as it is measured."""
    with ExitStack() as leave:
        folder = Path(leave.enter_context(tempfile.TemporaryDirectory(prefix="kvchat-bench-")))
        bench = _Bench(config, folder, leave)
        for length in lengths:
            yield bench.row(length, repeats)


def report(rows: Sequence[Row]) -> list[str]:
    """The rows as a table; milliseconds, median (lowest-highest)."""
    header = ["history", "new", *(f"{mode} ms" for mode in MODES), "none / live"]
    cells = [
        [
            str(row.history),
            str(row.message),
            *(str(row.ttft_ms[mode]) for mode in MODES),
            f"{row.ttft_ms['none'].median / row.ttft_ms['live'].median:.1f}x",
        ]
        for row in rows
    ]
    return table(header, cells)
