"""Enter to the first visible word, while somebody types as people do: with type-ahead, with prefill alone, and without."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Any

from kvchat.backends.base import Ahead, Answer, Done, Options, Reach, Text
from kvchat.backends.process import ProcessBackend
from kvchat.bench.contender import Setup
from kvchat.bench.measure import english, isolated
from kvchat.bench.typist import Stroke, Typist
from kvchat.chat.anticipation import Anticipation, Ask
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.errors import KvchatError

LENGTHS = (250, 1000, 4000)
MODES = {"off": None, "prefill": Reach.WHOLE, "auto": Reach.BEGUN}
"""How far is computed ahead at most."""
NUM_MESSAGES = 10
_MAX_TOKENS = 24
_TICK_S = 0.005

MESSAGES = (
    "What is this text about? One sentence is enough.",
    "Which part of it would you read first, and why?",
    "Thanks. Now say the same to a child of ten.",
    "I don't understand the last sentence, can you give an example?",
    "Make a list of the three most important words in it.",
    "Is there anything in there that you would call wrong?",
    "ok and what follows from that",
    "Write a title for it. It should be short, and not too clever.",
    "Who might have written this, and for whom?",
    "please answer in one word: is it fiction",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One history length in tokens, in one mode: milliseconds from Enter to the first word, the share of answers of
    which some tokens were there at Enter, and tokens that were computed ahead, and of them thrown away, a message."""

    history: int
    mode: str
    enter_ms: tuple[float, ...]
    ready: float
    ahead: float
    wasted: float

    def percentile(self, percent: int) -> float:
        """Of the times, in milliseconds."""
        if len(self.enter_ms) < 2:
            return self.enter_ms[0]
        return quantiles(self.enter_ms, n=100, method="inclusive")[percent - 1]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "bench": "typing",
            "history_tokens": self.history,
            "mode": self.mode,
            "p50_ms": self.percentile(50),
            "p95_ms": self.percentile(95),
            "messages": len(self.enter_ms),
            "ready": self.ready,
            "ahead_tokens": self.ahead,
            "wasted_tokens": self.wasted,
        }

    def cells(self) -> dict[str, str]:
        """What a table shows."""
        return {
            "history": str(self.history),
            "type-ahead": self.mode,
            "p50 ms": f"{self.percentile(50):.1f}",
            "p95 ms": f"{self.percentile(95):.1f}",
            "ready": f"{self.ready:.0%}",
            "computed ahead": f"{self.ahead:.0f}",
            "wasted": f"{self.wasted:.0f}",
        }


class Replay:
    """Types messages into a session, and has computed ahead what the terminal would have."""

    def __init__(self, session: Session, most: Reach | None) -> None:
        self._session = session
        self._most = most
        self._anticipation = Anticipation()
        self._num_begun = 0

    def send(self, strokes: Sequence[Stroke]) -> tuple[float, Answer, int]:
        """Type, and press Enter: seconds to the first visible word, the answer, and its tokens that were there."""
        began = time.monotonic()
        self._num_begun = 0
        for stroke, after in pairwise(strokes):
            while (now := time.monotonic()) < began + after.at_s:
                self._follow(stroke.text, now)
                time.sleep(min(_TICK_S, began + after.at_s - now))
        self._anticipation.forget()
        return self._answer(strokes[-1].text)

    def _follow(self, text: str, now: float) -> None:
        if self._most is not None and (ask := self._anticipation.next(text.strip(), now, self._most)):
            self._num_begun = 0
            threading.Thread(target=self._compute, args=(ask,), daemon=True).start()

    def _compute(self, ask: Ask) -> None:
        with suppress(KvchatError):
            for event in self._session.ahead(ask.text, ask.reach):
                self._note(event)
        self._anticipation.end(ask)

    def _note(self, event: Ahead) -> None:
        self._num_begun = event.begun

    def _answer(self, text: str) -> tuple[float, Answer, int]:
        num_begun, sent, first_s = self._num_begun, time.perf_counter(), 0.0
        for event in self._session.send(text):
            if not first_s and isinstance(event, Text) and event.text.strip():
                first_s = time.perf_counter() - sent
            elif isinstance(event, Done):
                return first_s or time.perf_counter() - sent, event.answer, num_begun
        raise AssertionError("an answer without an end")


def measure(
    setup: Setup, *, lengths: Sequence[int] = LENGTHS, messages: int = NUM_MESSAGES, seed: int = 0
) -> Iterator[Row]:
    """One row for each history length and mode, as soon as it is measured. It types as slowly as people do."""
    with tempfile.TemporaryDirectory(prefix="kvchat-bench-") as folder:
        config = replace(setup.config, paths=replace(setup.config.paths, cache=Path(folder)))
        with closing(ProcessBackend(isolated(config))) as backend:
            backend.info()
            for length in lengths:
                system = english(length, backend.count)
                for mode, most in MODES.items():
                    yield _row(backend, system, length, mode, most, messages=messages, seed=seed)


def _row(
    backend: ProcessBackend,
    system: str,
    length: int,
    mode: str,
    most: Reach | None,
    *,
    messages: int,
    seed: int,
) -> Row:
    found: list[tuple[float, Answer, int]] = []
    store = Store()  # one that is open already, as a terminal's is
    for number in range(messages + 1):  # the first does not count: it computes the history
        options = Options(temperature=0.0, repetition_penalty=1.0, max_tokens=_MAX_TOKENS)
        session = Session(backend, options, system, store=store)
        strokes = list(Typist(seed + number).strokes(MESSAGES[number % len(MESSAGES)]))
        is_typed = most is not None and number > 0
        found.append(Replay(session, most).send(strokes if is_typed else strokes[-1:]))
    counted = found[1:]
    answers = [answer.timings for _, answer, _ in counted]
    return Row(
        length,
        mode,
        tuple(1e3 * seconds for seconds, _, _ in counted),
        sum(num_begun > 0 for _, _, num_begun in counted) / len(counted),
        sum(each.ahead_n for each in answers) / len(answers),
        sum(each.ahead_n - each.ahead_used_n for each in answers) / len(answers),
    )
