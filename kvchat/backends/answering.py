"""One answer being made: the engine's events as the reader's, and at their end what it all was and cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace

from kvchat.backends import base
from kvchat.backends.asking import Question
from kvchat.backends.base import Answer, Event, FinishReason, Phase, Status
from kvchat.backends.loading import Idle, Show, Talk, Typed
from kvchat.backends.repetition import RepetitionWatch
from kvchat.backends.report import Asked, cache_report
from kvchat.backends.scored import TokenTexts
from kvchat.backends.wording import Wording
from kvchat.engine.request import EngineEvent, Finished, Progress, Request, Reuse, Wanting, never
from kvchat.engine.sampling import NoNumbersError
from kvchat.engine.sequence import unheard
from kvchat.models.kinds import as_generated
from kvchat.models.numbers import no_numbers


class Answering:
    """One answer in a conversation. `started` is when the clock of the first text began."""

    def __init__(self, talk: Talk, question: Question, *, started: float) -> None:
        self._talk = talk
        self._question = question
        self._started = started
        self._drafts_before = talk.sequence.drafts
        tokenizer, stops = talk.model.tokenizer, question.options.stop
        repetition = RepetitionWatch() if question.options.repeat_stop else None
        splitter = question.splitter(talk.model)
        self._is_ahead = False
        self._finished: Finished | None = None
        self._texts = TokenTexts(tokenizer)
        self._wording = Wording(tokenizer, splitter, stops, question.unfinished, repetition)

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer that are made."""
        return len(self._wording.ids)

    @property
    def is_finished(self) -> bool:
        """Whether it is made; what it all was comes with the next step."""
        return self._finished is not None

    def restart(self, started: float) -> None:
        """Let the clock of the first text begin at `started`, though some of it may be made: nobody has seen it yet."""
        self._started, self._is_ahead = started, True
        if self._wording.first_text_at is not None:
            self._wording.first_text_at = time.perf_counter()

    def events(
        self, keeping: base.Keeping, is_cancelled: Callable[[], bool], show: Show
    ) -> Generator[Event | Wanting, None, None]:
        """The answer's events, the last of them `Done`; between them it may be wanting."""
        with closing(self.steps(keeping, is_cancelled, show)) as steps:
            for events in steps:
                yield from events

    def steps(
        self,
        keeping: base.Keeping,
        is_cancelled: Callable[[], bool],
        show: Show,
        is_paused: Callable[[], bool] = never,
    ) -> Generator[list[Event | Wanting], None, None]:
        """The same step by step, as the engine makes them: a token, which may have no event yet, is a step.

        `is_paused` as `Engine.generate` has it."""
        talk, question, wording = self._talk, self._question, self._wording
        request = question.request(talk.model, reuse=keeping.mode != "off", stores=talk.model.stores(keeping))
        talk.sequence.on_progress = lambda event: show(Status(Phase.PREFILLING, "", event.done, event.total))
        try:
            with closing(self._engine_events(request, is_cancelled, is_paused)) as engine_events:
                for event in engine_events:
                    yield self._told(event, show)
            assert self._finished is not None
            yield [*wording.rest(), base.Done(self._answer(self._seen(self._finished)))]
        finally:
            talk.sequence.on_progress = unheard
            talk.last = Asked(question.turns, (*question.ids, *wording.ids))

    def _told(self, event: EngineEvent, show: Show) -> list[Event | Wanting]:
        """What an event of the engine's is to the reader, or to whoever runs this."""
        if isinstance(event, Wanting):
            return [event]
        if isinstance(event, Progress):
            show(Status(Phase.PREFILLING, "", event.done, event.total))
            return [base.Prefilling(event.done, event.total, event.reuse.num_tokens)]
        if isinstance(event, Finished):
            self._finished = event
            return []
        if not self._wording.ids:
            show(Status(Phase.DECODING))
        return list(self._wording.tell(event.id, self._texts.scored(event) if event.score else None))

    def _engine_events(
        self, request: Request, is_cancelled: Callable[[], bool], is_paused: Callable[[], bool]
    ) -> Generator[EngineEvent, None, None]:
        """The engine's events; scores that are no numbers become an error with its remedy."""
        talk, wording = self._talk, self._wording
        engine = talk.model.engine
        try:
            yield from engine.generate(
                talk.sequence, request, is_cancelled, lambda: wording.is_over, is_paused
            )
        except NoNumbersError as error:
            raise no_numbers(engine.loaded) from error

    def _seen(self, finished: Finished) -> Finished:
        """The end as it is to whoever sent the message: what was computed before, all but the last token, was live then."""
        if not self._is_ahead:
            return finished
        reuse = finished.reuse
        computed = max(0, len(self._question.ids) - 1 - reuse.num_tokens)
        return replace(finished, reuse=replace(reuse, live=reuse.live + computed), prefill_s=0.0)

    def _answer(self, finished: Finished) -> Answer:
        wording, question, model = self._wording, self._question, self._talk.model
        idle, self._talk.idle = self._talk.idle, Idle()
        engine, reuse = model.engine, finished.reuse
        ids, completion = question.ids, wording.shown_ids()
        whole = engine.told([*question.tokens, *as_generated(completion)])
        return Answer(
            text=wording.text,
            reasoning=wording.reasoning.strip(),
            prompt=tuple(ids),
            completion=tuple(completion),
            tokenizer=model.tokenizer.id,
            finish_reason=(
                FinishReason.REPETITION if wording.is_looping else FinishReason(finished.reason.value)
            ),
            usage=base.Usage(len(ids), len(completion), reuse.num_tokens),
            timings=self._timings(finished, idle),
            cache=self._cache_report(reuse, idle),
            kv_root=engine.cache.root.hex() if engine.cache else "",
            kv_tip=engine.cache.tip(whole) if engine.cache else "",
            encoded=question.encoded,
            retracted=wording.retracted,
            stop_text=wording.stop_text,
            scores=wording.shown_scores(completion),
        )

    def _timings(self, finished: Finished, idle: Idle) -> base.Timings:
        reuse, sequence = finished.reuse, self._talk.sequence
        guessed = sequence.drafts.since(self._drafts_before)
        typed, self._talk.typed = self._talk.typed, Typed()
        first_text_at = self._wording.first_text_at or time.perf_counter()
        return base.Timings(
            load_ms=self._talk.model.info.load_ms,
            kv_load_ms=reuse.kv_load_s * 1e3,
            cache_n=reuse.num_tokens,
            prompt_n=len(self._question.ids) - reuse.num_tokens,
            prompt_ms=finished.prefill_s * 1e3,
            predicted_n=finished.num_generated,
            predicted_ms=finished.decode_s * 1e3,
            ttft_ms=(first_text_at - self._started) * 1e3,
            idle_n=idle.tokens,
            idle_ms=idle.seconds * 1e3,
            draft_n=guessed.drafted,
            draft_n_accepted=guessed.accepted,
            ahead_n=typed.tokens,
            ahead_used_n=typed.used,
            ahead_ms=typed.seconds * 1e3,
            ahead_saved_ms=typed.saved_s * 1e3,
        )

    def _cache_report(self, reuse: Reuse, idle: Idle) -> base.CacheReport:
        talk, engine = self._talk, self._talk.model.engine
        saved_tokens = max(0, reuse.num_tokens - idle.tokens)  # what was computed ahead was no less work
        report = cache_report(
            reuse,
            Asked(self._question.turns, tuple(self._question.ids)),
            talk.last,
            decode=talk.model.tokenizer.decode,
            saved_s=max(0.0, engine.pace.saved_s(saved_tokens) - reuse.kv_load_s),
        )
        return replace(report, codec=engine.cache.settings.codec) if engine.cache else report
