"""Time to the first token against the length of the history: computed whole, and with it live, in RAM, on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from kvchat.backends.base import Answer, ModelInfo, Role, Turn
from kvchat.bench.contender import Contender, Setup, running
from kvchat.bench.histories import MODES, Histories, opened
from kvchat.bench.measure import Spread, english, json_of, paired, rounds, spreads, use_threads
from kvchat.bench.plot import Chart
from kvchat.bench.prompts import token_ids

LENGTHS = (250, 1000, 4000)


@dataclass(frozen=True, slots=True)
class Row:
    """One history length in tokens; milliseconds to the first token by where the history was found.

    `live`, `ram`, `disk` and `none` are kvchat's; contenders held the history themselves.
    """

    history: int
    message: int
    ttft_ms: dict[str, Spread]
    times_live: dict[str, Spread]
    info: ModelInfo

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "bench": "ttft",
            "history_tokens": self.history,
            "message_tokens": self.message,
            "ttft_ms": json_of(self.ttft_ms),
            "times_live": json_of(self.times_live),
            "kv_bytes": self.history * self.info.kv_bytes_per_token,
            "flops_saved": 2 * self.info.num_parameters * self.history,
        }

    def cells(self) -> dict[str, str]:
        """What a table shows."""
        times = {f"{name} ms": str(value) for name, value in self.ttft_ms.items()}
        ratios = {
            f"{name} / live": f"{ratio.median:.1f}x"
            for name, ratio in self.times_live.items()
            if name not in ("ram", "disk")
        }
        sizes = {
            "KV MB": f"{self.history * self.info.kv_bytes_per_token / 1e6:.1f}",
            "GFLOP saved": f"{2 * self.info.num_parameters * self.history / 1e9:.0f}",
        }
        return {"history": str(self.history), "new": str(self.message), **times, **ratios, **sizes}


class _Round:
    """One length: kvchat's backends and the contenders take turns."""

    def __init__(self, histories: Histories, contenders: Mapping[str, Contender], length: int) -> None:
        self.new = 0
        self._histories = histories
        self._contenders = contenders
        self._history = [Turn(Role.SYSTEM, english(length, histories.in_ram.count))]
        histories.compute(self._history)
        self._prompt: list[int] = []
        self._held = 0

    def once(self, name: str) -> float:
        """Milliseconds to the first token."""
        if name in self._contenders:
            return self._theirs(self._contenders[name])
        answer = self._histories.ask(name, self._history)
        if name == "live":
            self._remember(answer)
        return answer.timings.ttft_ms

    def _remember(self, answer: Answer) -> None:
        self.new = answer.timings.prompt_n
        self._held = answer.timings.cache_n
        self._prompt = list(answer.prompt)

    def _theirs(self, contender: Contender) -> float:
        """A contender that holds the same history is asked the last message."""
        if not self._prompt:
            self.once("live")
        contender.answer(self._prompt[: self._held])
        return contender.answer(self._prompt).first_s * 1e3


def measure(
    setup: Setup, against: Sequence[str] = (), *, lengths: Sequence[int] = LENGTHS, repeats: int = 3
) -> Iterator[Row]:
    """One row per history length, as soon as it is measured."""
    with ExitStack() as leave:
        setup = replace(setup, threads=use_threads(setup.threads))
        token_ids(setup.config, max(lengths))  # refuses what there is no text for
        histories = leave.enter_context(opened(setup.config))
        others = [name for name in against if name != "nocache"]  # which is `none`
        contenders = leave.enter_context(running(others, setup))
        for length in lengths:
            turn = _Round(histories, contenders, length)
            found = rounds((*MODES, *others), repeats, turn.once)
            yield Row(length, turn.new, spreads(found), paired(found, "live"), histories.in_ram.info())


def chart(rows: Sequence[Row]) -> Chart:
    """Milliseconds to the first token against the history's length."""
    names = {"none": "kvchat, without the cache", "live": "kvchat, live", "ram": "kvchat, from RAM"}
    names |= {"disk": "kvchat, from disk"}
    lines = {names.get(name, name): [row.ttft_ms[name] for row in rows] for name in rows[0].ttft_ms}
    x = [row.history for row in rows]
    return Chart("Time to the first token", "tokens of history", "milliseconds", x, lines, logarithmic=True)
