"""A backend that follows a script instead of a model: it echoes, streams slowly or fails as the message says.

`slow N` streams N numbered words, 20 ms each; `lines N` N numbered lines; `long N` prefills N chunks; `think`
reasons first; `file PATH` streams what a file contains, nothing from the text on that PATH.hold contains; `say TEXT` answers exactly that (with escapes decoded); `fail`, `overflow`, `oom`, `die` raise;
`break N` dies after N words; `expire` dies half a second after it answered; `wait` blocks before its first
token; `notice TEXT` sends a notice, `refuse TEXT` raises with a text; anything else is echoed with the number of messages in the history. An unfinished answer is gone on with, word by word.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from kvchat.backends.base import (
    DEFAULTS,
    Ahead,
    Answer,
    CacheReport,
    Done,
    Event,
    FinishReason,
    ModelInfo,
    Notice,
    Options,
    Phase,
    Prefilling,
    Reach,
    Role,
    Status,
    Text,
    Timings,
    Turn,
    Usage,
)
from kvchat.backends.inspection import CacheRow, CacheTotals, CacheView
from kvchat.cache.stats import TierUse
from kvchat.errors import (
    ContextOverflowError,
    EngineDiedError,
    KvchatError,
    ModelUnavailableError,
    OutOfMemoryError,
)

CONTEXT = 8192
WORD_S = 0.02
PREPARE_S = 0.4

ERRORS: dict[str, KvchatError] = {
    "fail": KvchatError("it failed", "try again"),
    "overflow": ContextOverflowError("9000 tokens do not fit a context of 8192", "shorten it, or /clear"),
    "oom": OutOfMemoryError("out of memory", "use a smaller model"),
    "die": EngineDiedError("the engine ended (signal 9)", "it is started again"),
}


class ScriptedBackend:
    """Implements `Backend` with one thread's worth of care; a token is a word."""

    def __init__(
        self,
        *,
        load_s: float = 0.0,
        missing: bool = False,
        template: str = "append-safe",
        waiting_mark: Path | None = None,
        prepared_log: Path | None = None,
    ) -> None:
        self.load_s = load_s
        self.waiting_mark = waiting_mark
        self.prepared_log = prepared_log
        self.missing = missing
        self.tokenizer = "words"
        self.template = template
        self._idle_n = 0
        self._is_preparing = False
        self.closed = False
        self.histories: list[tuple[Turn, ...]] = []
        self.options: list[Options] = []
        self.prepared: list[tuple[Turn, ...]] = []
        self.typed: list[tuple[str, Reach]] = []
        self._cancelled = threading.Event()
        self._started = 0.0
        self._dies_at = float("inf")
        self._phase = Phase.STARTING
        self._seen: set[str] = set()

    def start(self) -> None:
        if self._is_dead:
            self._started, self._dies_at = 0.0, float("inf")
        self._started = self._started or time.monotonic()

    @property
    def _is_dead(self) -> bool:
        return time.monotonic() > self._dies_at

    def status(self) -> Status:
        if self.closed:
            return Status(Phase.CLOSED)
        if self._is_dead:
            return Status(Phase.STARTING)
        idle = ("preparing", 1, 2) if self._is_preparing else ()
        if self._phase is not Phase.STARTING:
            return Status(self._phase, *idle)
        spent = time.monotonic() - self._started if self._started else 0.0
        if spent >= self.load_s:
            return Status(Phase.READY, *idle)
        return Status(Phase.LOADING, "", int(100 * spent / self.load_s), 100)

    def info(self) -> ModelInfo:
        self._wait_for_load()
        return ModelInfo(
            "scripted",
            "Scripted",
            "float32",
            "cpu",
            CONTEXT,
            1000,
            0,
            "blocks",
            "words",
            1e3 * self.load_s,
            template=self.template,
        )

    def count(self, text: str) -> int:
        return len(text.split())

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self.closed = True
        self._cancelled.set()

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        unfinished = history[-1] if history[-1].role is Role.ASSISTANT else None
        self.histories.append(tuple(history))
        self.options.append(options)
        self._cancelled.clear()
        self._wait_for_load()
        begun = time.monotonic()
        message = history[-2].text if unfinished else history[-1].text
        num_said = len(unfinished.tokens or unfinished.text.split()) if unfinished else 0
        verb, _, rest = message.partition(" ")
        if verb in ERRORS:
            raise ERRORS[verb]
        if verb == "refuse":
            raise KvchatError(_decoded(rest), _decoded(rest))
        prompt_words = [word for turn in history for word in turn.text.split()]
        cached = self._cached(history)
        try:
            self._phase = Phase.PREFILLING
            yield from self._prefill(verb, rest, cached, len(prompt_words))
            self._phase = Phase.DECODING
            said: list[str] = []
            thought: list[str] = []
            num_turns = len(history) - (unfinished is not None)
            for piece in islice(self._pieces(verb, rest, message, num_turns), num_said, None):
                if self._cancelled.is_set() or len(said) >= (options.max_tokens or 10**6):
                    break
                if isinstance(piece, Text):
                    (thought if piece.reasoning else said).append(piece.text)
                yield piece
        finally:
            self._phase = Phase.READY
            self._dies_at = time.monotonic() + 0.5 if verb == "expire" else self._dies_at
        if verb == "break":
            raise ERRORS["die"]
        reason = FinishReason.CANCELLED if self._cancelled.is_set() else FinishReason.STOP
        if reason is FinishReason.STOP and options.max_tokens and len(said) >= options.max_tokens:
            reason = FinishReason.LENGTH
        count = len(said) + len(thought)
        spent = 1e3 * (time.monotonic() - begun)
        yield Done(
            Answer(
                "".join(said),
                "".join(thought),
                tuple(range(len(prompt_words))),
                tuple(range(num_said, num_said + count)),
                self.tokenizer,
                reason,
                Usage(len(prompt_words), count, cached),
                Timings(
                    1e3 * self.load_s,
                    0.0,
                    cached,
                    len(prompt_words) - cached,
                    10.0,
                    count,
                    spent,
                    min(spent, 20.0),
                    idle_n=self._idle_n,
                ),
                CacheReport(cached, {}, cached, "new text"),
            )
        )

    def ahead(self, history: Sequence[Turn], options: Options, reach: Reach) -> Iterator[Ahead]:
        self.typed.append((history[-1].text if history and history[-1].role is Role.USER else "", reach))
        num_words = len(self.typed[-1][0].split())
        if num_words:
            yield Ahead(num_words, num_words, int(reach is Reach.BEGUN))

    def warm(self, history: Sequence[Turn], options: Options = DEFAULTS) -> Iterator[Event]:
        self._wait_for_load()
        total = sum(len(turn.text.split()) for turn in history)
        yield Prefilling(0, total, 0)
        yield Prefilling(total, total, 0)

    def prepare(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        self.prepared.append(tuple(history))
        is_said = bool(self.histories) and tuple(history[:-1]) == self.histories[-1]
        if self.template == "append-safe" and is_said:
            return
        self._is_preparing = True
        self._cancelled.wait(PREPARE_S)
        self._is_preparing = False
        self._idle_n = len(history)
        if self.prepared_log:
            with self.prepared_log.open("a") as log:
                log.write(f"{len(history)}\n")
        yield Prefilling(0, len(history), 0)
        yield Prefilling(len(history), len(history), 0)

    def cache(
        self, history: Sequence[Turn], options: Options = DEFAULTS, *, has_rows: bool = True
    ) -> CacheView:
        """What was asked before is held: live if it was asked last, on disk otherwise; 100 bytes and 10 ms a word."""
        self._wait_for_load()
        last = set(self.histories[-1]) if self.histories else set()
        before = {turn for turns in self.histories for turn in turns}
        rows = tuple(self._cache_row(turn, turn in last, turn in before) for turn in history)
        num_tokens, num_held = (
            sum(row.tokens for row in rows),
            sum(max(row.live, row.tiers["disk"]) for row in rows),
        )
        asked = sum(len(turn.text.split()) for turns in self.histories for turn in turns)
        process = CacheTotals(asked_tokens=asked, stored_blocks=len(self.histories), stored_bytes=100 * asked)
        return CacheView(
            mode="rw",
            codec="raw",
            block_size=16,
            tiers=(TierUse("ram", 0, 10**6), TierUse("disk", 100 * asked, 10**7)),
            arena_used=100 * num_held,
            rows=rows if has_rows else (),
            prompt_tokens=num_tokens,
            cached_tokens=num_held,
            compute_s=0.01 * (num_tokens - num_held),
            turn=CacheTotals(asked_tokens=asked),
            process=process,
            weights_bytes=10**6,
        )

    def _cache_row(self, turn: Turn, is_live: bool, is_known: bool) -> CacheRow:
        words = len(turn.text.split())
        held = words if is_known else 0
        return CacheRow(
            turn.role,
            turn.text[:80],
            words,
            words if is_live else 0,
            {"ram": 0, "disk": held},
            100 * words,
            0.01 * held,
        )

    def _wait_for_load(self) -> None:
        self.start()
        if self.waiting_mark:
            self.waiting_mark.touch()
        while self.status().phase is Phase.LOADING and not self.closed:
            time.sleep(0.01)
        if self.closed:
            raise EngineDiedError("the engine was closed")
        if self.missing:
            self._phase = Phase.FAILED
            raise ModelUnavailableError("no model is called 'nobody'", "see kvchat models ls")

    def _cached(self, history: Sequence[Turn]) -> int:
        known = 0
        for turn in history[:-1]:
            known += len(turn.text.split())
        return known

    def _prefill(self, verb: str, rest: str, cached: int, total: int) -> Iterator[Event]:
        chunks = int(rest or 5) if verb == "long" else 1
        for done in range(chunks + 1):
            yield Prefilling(done * 256, chunks * 256, cached)
            if verb == "long" and done < chunks:
                self._cancelled.wait(0.1)
            if self._cancelled.is_set():
                return
        if verb == "wait":
            self._cancelled.wait(30)

    def _pieces(self, verb: str, rest: str, message: str, num_turns: int) -> Iterator[Event]:
        if verb == "think":
            yield from (Text(f"hm {n} ", reasoning=True) for n in range(3))
        if verb == "notice":
            yield Notice(_decoded(rest) or "the engine was started again")
        if verb in ("slow", "break"):
            for n in range(int(rest or 5)):
                self._cancelled.wait(WORD_S)
                yield Text(f"word{n} ")
        elif verb == "lines":
            for n in range(int(rest)):
                self._cancelled.wait(0.002)
                yield Text(f"line number {n}\n")
        elif verb == "file":
            said, hold = Path(rest).read_text(encoding="utf-8", errors="replace"), Path(f"{rest}.hold")
            for start in range(0, len(said), 7):
                self._cancelled.wait(0.001)
                while start >= _held_from(said, hold) and not self._cancelled.is_set():
                    time.sleep(0.01)
                yield Text(said[start : start + 7])
        elif verb == "say":
            said = _decoded(rest)
            yield from (Text(said[start : start + 5]) for start in range(0, len(said), 5))
        else:
            yield from (Text(piece) for piece in (f"[{num_turns}] ", "you said: ", message))


def _held_from(said: str, hold: Path) -> int:
    """Where the text begins that a file says is to wait."""
    try:
        return said.index(hold.read_text())
    except FileNotFoundError:
        return len(said)


def _decoded(text: str) -> str:
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
