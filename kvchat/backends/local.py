"""A backend in this process: template + engine + stop strings. The library, one-shot mode and the engine process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from queue import SimpleQueue
from typing import TypeVar

from kvchat.backends import base
from kvchat.backends.ahead import ahead, answering, forget
from kvchat.backends.asking import Question, check_room, conversation, prompt_tokens, was_measured
from kvchat.backends.base import (
    DEFAULTS,
    Event,
    Keeping,
    ModelInfo,
    Options,
    Phase,
    Reach,
    Role,
    Status,
    Turn,
)
from kvchat.backends.inspection import CacheView, VerifySample
from kvchat.backends.loading import Talk, load
from kvchat.backends.preparing import pin, prepare
from kvchat.backends.verify import verify_sample
from kvchat.backends.view import cache_view
from kvchat.config import Config
from kvchat.engine.request import Wanting
from kvchat.engine.worker import JobKind, Stream, Worker
from kvchat.models.kinds import ids_of
from kvchat.models.pauses import Interrupted

E = TypeVar("E")
"""What a job yields."""


class LocalBackend:
    """Loads the model of `config` in a thread of its own and answers there. See `base.Backend`.

    Each call says itself what it may use of the cache and leave in it; by default what the settings say.
    """

    def __init__(self, config: Config, worker: Worker[Talk] | None = None) -> None:
        """`worker` is one that several of these use; by default it is a new one."""
        self.config = config
        self._keeping = Keeping.from_config(config)
        self._status = Status(Phase.STARTING)
        self._notices: SimpleQueue[str] = SimpleQueue()
        self._meant: object = None
        self._worker: Worker[Talk] = worker or Worker(
            self._load,
            settle=lambda talk: talk.model.engine.warm_up(talk.sequence),
            unload=lambda talk: talk.model.engine.close(),
        )

    def start(self) -> None:
        self._worker.start()

    def status(self) -> Status:
        return self._status

    def info(self) -> ModelInfo:
        return self._worker.wait().model.info

    def answer(
        self, history: Sequence[Turn], options: Options, keeping: Keeping | None = None
    ) -> Stream[Event]:
        submitted, turns, keeping = time.perf_counter(), tuple(history), keeping or self._keeping
        self._mean(turns, options)

        def job(talk: Talk, is_cancelled: Callable[[], bool]) -> Iterator[Event | Wanting]:
            started = max(submitted, talk.model.ready_at)
            question = None
            with suppress(Interrupted):
                if was_measured(turns, talk.model, is_cancelled):
                    question = Question.of(talk.model, turns, options)
            if question is None:
                tokenizer = talk.model.tokenizer.id
                yield base.Done(base.Answer.cut_short(base.NEVER_BEGUN, tokenizer=tokenizer))
                return
            if talk.model.engine.cache is not None:
                talk.model.engine.cache.stats.begin_turn()
            answer = answering(talk, question, keeping, is_cancelled, self._show, started)
            try:
                with closing(answer):
                    for event in answer:
                        while not self._notices.empty():
                            yield base.Notice(self._notices.get())
                        yield event
            finally:
                self._show(Status(Phase.READY))
                self._keep(talk, turns, options, keeping)

        return self._run(job)

    def warm(
        self, history: Sequence[Turn], options: Options = DEFAULTS, keeping: Keeping | None = None
    ) -> Stream[Event]:
        turns, keeping = tuple(history), keeping or self._keeping

        def job(talk: Talk, is_cancelled: Callable[[], bool]) -> Iterator[Event]:
            forget(talk)
            template, messages = conversation(talk.model, turns)
            encode = template.next_prefix if turns[-1].role is Role.SYSTEM else template.tokens
            tokens = encode(messages, think=options.think)
            check_room(ids_of(tokens), talk.model)
            engine, stores = talk.model.engine, talk.model.stores(keeping)
            try:
                for event in engine.warm(talk.sequence, tokens, is_cancelled, store=stores):
                    self._show(Status(Phase.PREFILLING, "", event.done, event.total))
                    yield base.Prefilling(event.done, event.total, event.reuse.num_tokens)
            finally:
                self._show(Status(Phase.READY))
                pin(talk, turns, options, keeping)

        return self._run(job)

    def prepare(
        self, history: Sequence[Turn], options: Options, keeping: Keeping | None = None
    ) -> Stream[Event]:
        turns, keeping = tuple(history), keeping or self._keeping
        if not self.config.cache.prepare or keeping.mode == "off":
            return Stream.of_nothing()

        def job(talk: Talk, is_cancelled: Callable[[], bool]) -> Iterator[Event]:
            try:
                for event in prepare(talk, turns, options, keeping, is_cancelled):
                    self._show(Status(Phase.READY, "preparing", event.done, event.total))
                    yield base.Prefilling(event.done, event.total, event.reuse.num_tokens)
            finally:
                self._show(Status(Phase.READY))

        return self._run(job, JobKind.IDLE)

    def ahead(
        self, history: Sequence[Turn], options: Options, reach: Reach, keeping: Keeping | None = None
    ) -> Stream[base.Ahead]:
        turns, keeping = tuple(history), keeping or self._keeping
        meant = self._mean(turns, options)

        def job(talk: Talk, is_cancelled: Callable[[], bool]) -> Iterator[base.Ahead]:
            yield from ahead(
                talk, turns, options, keeping, reach, is_cancelled, lambda: self._meant is not meant
            )

        return self._run(job, JobKind.IDLE)

    def cache(
        self,
        history: Sequence[Turn],
        options: Options = DEFAULTS,
        *,
        has_rows: bool = True,
        keeping: Keeping | None = None,
    ) -> CacheView:
        turns, keeping = tuple(history), keeping or self._keeping

        def job(talk: Talk, _: Callable[[], bool]) -> Iterator[CacheView]:
            yield cache_view(talk, turns, options, keeping, has_rows=has_rows)

        (view,) = self._run(job, JobKind.LOOK)
        return view

    def verify(self, sample: int) -> VerifySample:
        """Compute up to `sample` stored runs of this model again and compare; waits for the model and for a running
        answer, whose live KV stays as it is. Nothing is compared where nothing is stored."""

        def job(talk: Talk, is_cancelled: Callable[[], bool]) -> Iterator[VerifySample]:
            forget(talk)
            yield verify_sample(talk.model.engine, self.config.paths.cache, sample, is_cancelled)

        (verified,) = self._run(job)
        return verified

    def cancel(self) -> None:
        self._worker.cancel(self)

    def prompt(self, history: Sequence[Turn], options: Options = DEFAULTS) -> tuple[int, ...]:
        """The ids of the prompt that a history is, however long. Waits for the model, but for no answer.

        Raises ContextOverflowError for a text far too long, ModelUnavailableError where the template refuses it.
        """
        return tuple(ids_of(prompt_tokens(self._worker.wait().model, tuple(history), options.think)))

    def count(self, text: str) -> int:
        return self._worker.wait().model.tokenizer.count(base.well_formed(text))

    def close(self) -> None:
        self._worker.close()
        self._show(Status(Phase.CLOSED))

    def _run(
        self, job: Callable[[Talk, Callable[[], bool]], Iterator[E | Wanting]], kind: JobKind = JobKind.WORK
    ) -> Stream[E]:
        def heard(talk: Talk, is_cancelled: Callable[[], bool]) -> Iterator[E | Wanting]:
            with suppress(Interrupted), talk.model.tokenizer.hearing(is_cancelled):
                yield from job(talk, is_cancelled)

        return self._worker.run(heard, kind, owner=self)

    def _mean(self, turns: Sequence[Turn], options: Options) -> object:
        """What is asked now, or typed: the same thing as before if it is the same; turns don't compare their clocks."""
        meant = turns, options
        if meant != self._meant:
            self._meant = meant
        return self._meant

    def _keep(self, talk: Talk, turns: Sequence[Turn], options: Options, keeping: Keeping) -> None:
        """Store what was computed. What fails behind an answer takes nothing from it, and is told with the next."""
        try:
            pin(talk, turns, options, keeping)
            talk.model.engine.store(talk.sequence, is_kept=talk.model.stores(keeping))
        except Exception as error:
            self._notices.put(f"the KV of the last answer was not kept: {type(error).__name__}: {error}")

    def _show(self, status: Status) -> None:
        if self._status.phase is not Phase.CLOSED:  # a thread that still loads may come too late
            self._status = status

    def _load(self) -> Talk:
        try:
            talk = load(self.config, self._show, self._notices.put)
        except BaseException as error:
            self._show(Status(Phase.FAILED, str(error)))
            raise
        self._show(Status(Phase.READY))
        return talk
