"""A backend in this process: template + engine + stop strings. The library, one-shot mode and the engine process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue

from kvchat.backends import base
from kvchat.backends.answering import Answering, check_room, conversation, never_begun, was_measured
from kvchat.backends.base import DEFAULTS, Event, ModelInfo, Options, Phase, Role, Status, Turn
from kvchat.backends.inspection import CacheView, VerifySample
from kvchat.backends.loading import Loaded, load
from kvchat.backends.preparing import pin, prepare
from kvchat.backends.report import Asked
from kvchat.backends.verify import verify_sample
from kvchat.backends.view import cache_view
from kvchat.config import Config
from kvchat.engine.worker import Manner, Stream, Worker


class LocalBackend:
    """Loads the model of `config` in a thread of its own and answers there. See `base.Backend`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._status = Status(Phase.STARTING)
        self._notices: SimpleQueue[str] = SimpleQueue()
        self._worker: Worker[Loaded] = Worker(
            self._load,
            settle=lambda loaded: loaded.engine.warm_up(),
            unload=lambda loaded: loaded.engine.close(),
        )

    def start(self) -> None:
        self._worker.start()

    def status(self) -> Status:
        return self._status

    def info(self) -> ModelInfo:
        return self._worker.wait().info

    def answer(self, history: Sequence[Turn], options: Options) -> Stream[Event]:
        submitted = time.perf_counter()
        turns = tuple(history)

        def job(loaded: Loaded, is_cancelled: Callable[[], bool]) -> Iterator[Event]:
            started = max(submitted, loaded.ready_at)
            if not was_measured(turns, loaded, is_cancelled):
                yield base.Done(never_begun(loaded))
                return
            if loaded.engine.cache is not None:
                loaded.engine.cache.stats.begin_turn()
            answering = Answering(loaded, turns, options, self.config)
            try:
                for event in answering.events(is_cancelled, started, self._show):
                    while not self._notices.empty():
                        yield base.Notice(self._notices.get())
                    yield event
            finally:
                self._show(Status(Phase.READY))
                loaded.last = Asked(turns, (*answering.prompt, *answering.ids))
                self._keep(loaded, turns, options)

        return self._worker.run(job)

    def warm(self, history: Sequence[Turn], options: Options = DEFAULTS) -> Stream[Event]:
        turns = tuple(history)

        def job(loaded: Loaded, is_cancelled: Callable[[], bool]) -> Iterator[Event]:
            template, messages = conversation(loaded, turns)
            encode = template.next_prefix if turns[-1].role is Role.SYSTEM else template.tokens
            ids = encode(messages, think=options.think)
            check_room(ids, loaded)
            try:
                for event in loaded.engine.warm(ids, is_cancelled):
                    self._show(Status(Phase.PREFILLING, "", event.done, event.total))
                    yield base.Prefilling(event.done, event.total, event.reuse.num_tokens)
            finally:
                self._show(Status(Phase.READY))
                pin(loaded, turns, options)

        return self._worker.run(job)

    def prepare(self, history: Sequence[Turn], options: Options) -> Stream[Event]:
        turns = tuple(history)
        if not self.config.cache.prepare or self.config.cache.mode == "off":
            return Stream.of_nothing()

        def job(loaded: Loaded, is_cancelled: Callable[[], bool]) -> Iterator[Event]:
            try:
                for event in prepare(loaded, turns, options, is_cancelled):
                    self._show(Status(Phase.READY, "preparing", event.done, event.total))
                    yield base.Prefilling(event.done, event.total, event.reuse.num_tokens)
            finally:
                self._show(Status(Phase.READY))

        return self._worker.run(job, Manner.IDLE)

    def cache(
        self, history: Sequence[Turn], options: Options = DEFAULTS, *, has_rows: bool = True
    ) -> CacheView:
        turns = tuple(history)

        def job(loaded: Loaded, _: Callable[[], bool]) -> Iterator[CacheView]:
            seen = conversation(loaded, turns)
            yield cache_view(loaded.engine, *seen, think=options.think, has_rows=has_rows)

        (view,) = self._worker.run(job, Manner.LOOK)
        return view

    def verify(self, sample: int) -> VerifySample:
        """Compute up to `sample` stored runs of this model again and compare; waits for the model and for a running
        answer, whose live KV stays as it is. Nothing is compared where nothing is stored."""

        def job(loaded: Loaded, is_cancelled: Callable[[], bool]) -> Iterator[VerifySample]:
            yield verify_sample(loaded.engine, self.config.paths.cache, sample, is_cancelled)

        (verified,) = self._worker.run(job)
        return verified

    def cancel(self) -> None:
        self._worker.cancel()

    def count(self, text: str) -> int:
        return self._worker.wait().tokenizer.count(text)

    def close(self) -> None:
        self._worker.close()
        self._show(Status(Phase.CLOSED))

    def _keep(self, loaded: Loaded, turns: Sequence[Turn], options: Options) -> None:
        """Store what was computed. What fails behind an answer takes nothing from it, and is told with the next."""
        try:
            pin(loaded, turns, options)
            loaded.engine.store()
        except Exception as error:
            self._notices.put(f"the KV of the last answer was not kept: {type(error).__name__}: {error}")

    def _show(self, status: Status) -> None:
        if self._status.phase is not Phase.CLOSED:  # a thread that still loads may come too late
            self._status = status

    def _load(self) -> Loaded:
        try:
            loaded = load(self.config, self._show, self._notices.put)
        except BaseException as error:
            self._show(Status(Phase.FAILED, str(error)))
            raise
        self._show(Status(Phase.READY))
        return loaded
