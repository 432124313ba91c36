"""What guessing ahead from the text so far gains where an answer quotes it, and costs where it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kvchat.backends.base import Answer, Backend, Role, Turn
from kvchat.backends.process import ProcessBackend
from kvchat.bench.measure import Spread, ask, isolated, json_of, paired, rounds, spreads
from kvchat.cache.block import common_prefix
from kvchat.config import Config

NUM_TOKENS = 128
"""Tokens of an answer."""
_TEXT = (
    "The old lighthouse stood on the northern cliff for more than two hundred years. Every evening the keeper climbed "
    "the narrow stairs, lit the great lamp, and watched the ships pass far below. In winter the storms threw salt water "
    "against the windows, and the whole tower hummed like a bell. In summer the children of the village came to visit "
    "him, and he told them stories about sailors, whales and distant islands. When he grew too old to climb the stairs, "
    "his daughter took the lamp, and the light never went out."
)
TASKS = {
    "quoting": f'Repeat the following text exactly, but write "castle" instead of "lighthouse":\n\n{_TEXT}',
    "free": "Tell me a long story about a dog in the city.",
}


@dataclass(frozen=True, slots=True)
class LookupRow:
    """One task: tokens per second without guesses and with them, the speedup, and how many guesses were right.

    The answers are `same` for so many of their `length` tokens: all of them, but for ties that rounding decides.
    """

    task: str
    tokens_per_s: dict[str, Spread]
    speedup: Spread
    drafted: int
    accepted: int
    same: int
    length: int

    def to_json(self) -> dict[str, Any]:
        return {
            "bench": "lookup",
            "task": self.task,
            "tokens_per_s": json_of(self.tokens_per_s),
            "speedup": self.speedup.to_json(),
            "drafted": self.drafted,
            "accepted": self.accepted,
            "same_tokens": self.same,
            "tokens": self.length,
        }

    def cells(self) -> dict[str, str]:
        speeds = {f"{name} tok/s": str(speed) for name, speed in self.tokens_per_s.items()}
        return {
            "task": self.task,
            **speeds,
            "speedup": f"{self.speedup.median:.2f}x ({self.speedup.low:.2f}-{self.speedup.high:.2f})",
            "guessed": str(self.drafted),
            "right": str(self.accepted),
            "same answer": "yes" if self.same == self.length else f"for {self.same} of {self.length} tokens",
        }


class _Pair:
    """The model without guesses and with them."""

    def __init__(self, config: Config, leave: ExitStack) -> None:
        draft = None if config.model.draft == 0 else config.model.draft
        self._backends = {"off": _open(config, 0, leave), "on": _open(config, draft, leave)}
        self.last: dict[str, Answer] = {}

    def speed(self, prompt: str, name: str) -> float:
        """One answer's tokens per second."""
        self.last[name] = ask(self._backends[name], [Turn(Role.USER, prompt)], max_tokens=NUM_TOKENS)
        return self.last[name].timings.decode_tokens_per_s


def measure(config: Config, *, repeats: int = 3, tasks: Sequence[str] = tuple(TASKS)) -> Iterator[LookupRow]:
    """One row per task, as soon as it is measured."""
    with ExitStack() as leave:
        pair = _Pair(isolated(config), leave)
        for task in tasks:
            prompt = TASKS[task]
            found = rounds(("off", "on"), repeats, partial(pair.speed, prompt))
            on, off = pair.last["on"], pair.last["off"]
            yield LookupRow(
                task,
                spreads(found),
                paired(found, "off")["on"],
                on.timings.draft_n,
                on.timings.draft_n_accepted,
                common_prefix(on.completion, off.completion),
                max(len(on.completion), len(off.completion)),
            )


def _open(config: Config, draft: int | None, leave: ExitStack) -> Backend:
    backend = ProcessBackend(replace(config, model=replace(config.model, draft=draft)))
    leave.callback(backend.close)
    backend.info()
    return backend
