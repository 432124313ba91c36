"""One answer being made: prompt ids, the engine's tokens as text, stop strings, reasoning, and what it all cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

from kvchat.backends import base
from kvchat.backends.base import Answer, Event, FinishReason, Options, Phase, Role, Status, Turn, time_of
from kvchat.backends.loading import Idle, Loaded
from kvchat.backends.report import Asked, cache_report
from kvchat.backends.text import Piece, ReasoningSplitter, StopScanner
from kvchat.config import Config
from kvchat.engine.request import EngineEvent, Finish, Finished, Progress, Request, Reuse, Token
from kvchat.engine.sampling import NoNumbersError, SamplingParams
from kvchat.engine.token_rules import TokenRules
from kvchat.errors import ContextOverflowError, ModelUnavailableError
from kvchat.models.kinds import as_generated, ids_of
from kvchat.models.numbers import no_numbers
from kvchat.models.text.reasoning import ReasoningMarks
from kvchat.models.text.template import ChatTemplate, Message


class Answering:
    """One answer being made."""

    def __init__(self, loaded: Loaded, turns: Sequence[Turn], options: Options, config: Config) -> None:
        self.loaded = loaded
        self.idle, loaded.idle = loaded.idle, Idle()
        self.options = options
        self.reuse = config.cache.mode != "off"
        template, messages = conversation(loaded, turns)
        self.encoded = _newly_encoded(turns, messages)
        self.turns = tuple(turns)
        self.tokens = template.tokens(messages, think=options.think)
        self.prompt = ids_of(self.tokens)
        self.shared = template.shared_tokens(messages, think=options.think)
        check_room(self.prompt, loaded)
        self.stream = loaded.tokenizer.stream()
        self.chosen = effective_options(loaded.info.defaults, options)
        opened = template.opens_reasoning(messages, think=options.think)
        self.splitter = _splitter(template.marks, is_open=opened)
        self.unfinished = template.unfinished(messages)
        self.unfinished_text = "".join(self.stream.push(token) for token in self.unfinished)
        begun = self.splitter.feed(self.unfinished_text)
        before = "".join(piece.text for piece in begun if not piece.is_reasoning)
        self.scanner = StopScanner(self.chosen.stop, before)
        self.ids: list[int] = []
        self.drafts_before = loaded.engine.drafts
        self.shown = ""  # all text up to where a stop string begins, marks included
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.first_text_at: float | None = None

    def events(
        self, is_cancelled: Callable[[], bool], started: float, show: Callable[[Status], None]
    ) -> Iterator[Event]:
        """The answer's events; `started` is when the clock of the first token began."""
        request = self._request()
        engine_events = _explained(self.loaded, self.loaded.engine.generate(request, is_cancelled))
        finished: Finished | None = None
        decode_started = 0.0
        for event in engine_events:
            if isinstance(event, Progress):
                show(Status(Phase.PREFILLING, "", event.done, event.total))
                yield base.Prefilling(event.done, event.total, event.reuse.num_tokens)
                reuse, decode_started = event.reuse, time.perf_counter()
                prefill_s = decode_started - started
            elif isinstance(event, Token):
                if not self.ids:
                    show(Status(Phase.DECODING))
                yield from self._token(event.id)
                if self.scanner.is_hit:
                    decode_s = time.perf_counter() - decode_started
                    prefilled = len(self.prompt) - reuse.num_tokens
                    finished = Finished(Finish.STOP, reuse, prefilled, prefill_s, decode_s, len(self.ids))
                    break
            else:
                finished = event
        engine_events.close()
        assert finished is not None
        yield from self._rest()
        yield base.Done(self._answer(finished, started))

    def _request(self) -> Request:
        chosen, model = self.chosen, self.loaded.engine.loaded
        stop_ids = model.eos_ids | set(self.loaded.template.closing_ids)
        sampling = SamplingParams(
            temperature=chosen.temperature or 0.0,
            top_k=chosen.top_k or 0,
            top_p=1.0 if chosen.top_p is None else chosen.top_p,
            min_p=chosen.min_p or 0.0,
            repetition_penalty=chosen.repetition_penalty or 1.0,
            seed=chosen.seed,
            rules=TokenRules.of(
                model.generation_defaults,
                frozenset(stop_ids),
                prompt_tokens=len(self.prompt),
                unfinished_tokens=len(self.unfinished),
            ),
        )
        return Request(self.tokens, sampling, chosen.max_tokens, stop_ids, self.shared, self.reuse)

    def _token(self, token: int) -> Iterator[Event]:
        self.ids.append(token)
        yield from self._show(self.stream.push(token))

    def _rest(self) -> Iterator[Event]:
        """What the stages still hold back at the end."""
        if not self.scanner.is_hit:
            yield from self._show(self.stream.finish())
            yield from self._emit(self.splitter.finish())
            yield from self._give(self.scanner.finish())

    def _show(self, text: str) -> Iterator[Event]:
        self.shown += text
        yield from self._emit(self.splitter.feed(text) if text else [])

    def _emit(self, pieces: Sequence[Piece]) -> Iterator[Event]:
        for piece in pieces:
            if piece.recalls:
                yield base.Notice("what came so far was reasoning: the model ended it and had not begun it")
                self.reasoning, self.text = [*self.text, self.scanner.finish()], []
            yield from self._give(
                piece.text if piece.is_reasoning else self.scanner.feed(piece.text), piece.is_reasoning
            )
            if self.scanner.is_hit:
                end = piece.end - len(self.unfinished_text) - self.scanner.rest
                self.shown = self.shown[: max(0, end)]
                return

    def _give(self, text: str, is_reasoning: bool = False) -> Iterator[Event]:
        if text:
            (self.reasoning if is_reasoning else self.text).append(text)
            if self.first_text_at is None:
                self.first_text_at = time.perf_counter()
            yield base.Text(text, is_reasoning)

    def _answer(self, finished: Finished, started: float) -> Answer:
        completion = self._ids_of_shown() if self.scanner.is_hit else self.ids
        reuse, cache = finished.reuse, self.loaded.engine.cache
        first_text_at = self.first_text_at or time.perf_counter()
        drafts = self.loaded.engine.drafts.since(self.drafts_before)
        timings = base.Timings(
            load_ms=self.loaded.info.load_ms,
            kv_load_ms=reuse.kv_load_s * 1e3,
            cache_n=reuse.num_tokens,
            prompt_n=len(self.prompt) - reuse.num_tokens,
            prompt_ms=finished.prefill_s * 1e3,
            predicted_n=finished.num_generated,
            predicted_ms=finished.decode_s * 1e3,
            ttft_ms=(first_text_at - started) * 1e3,
            idle_n=self.idle.tokens,
            idle_ms=self.idle.seconds * 1e3,
            draft_n=drafts.drafted,
            draft_n_accepted=drafts.accepted,
        )
        return Answer(
            text="".join(self.text),
            reasoning="".join(self.reasoning).strip(),
            prompt=tuple(self.prompt),
            completion=tuple(completion),
            tokenizer=self.loaded.tokenizer.id,
            finish_reason=FinishReason(finished.reason.value),
            usage=base.Usage(len(self.prompt), len(completion), reuse.num_tokens),
            timings=timings,
            cache=self._cache_report(reuse),
            kv_root=cache.root.hex() if cache else "",
            kv_tip=cache.tip(self.loaded.engine.told([*self.tokens, *as_generated(completion)]))
            if cache
            else "",
            encoded=self.encoded,
            retracted=self.scanner.retracted,
        )

    def _cache_report(self, reuse: Reuse) -> base.CacheReport:
        engine = self.loaded.engine
        saved_tokens = max(0, reuse.num_tokens - self.idle.tokens)  # what was computed ahead was no less work
        computing_s = engine.pace.saved_s(saved_tokens)
        report = cache_report(
            reuse,
            Asked(self.turns, tuple(self.prompt)),
            self.loaded.last,
            decode=self.loaded.tokenizer.decode,
            saved_s=max(0.0, computing_s - reuse.kv_load_s),
        )
        return replace(report, codec=engine.cache.settings.codec) if engine.cache else report

    def _ids_of_shown(self) -> list[int]:
        """The generated ids up to the stop string; where it began inside a token, the rest of the text encoded."""
        tokenizer = self.loaded.tokenizer
        before, shown = self.unfinished, self.unfinished_text + self.shown
        count = len(self.ids)
        while count and not shown.startswith(tokenizer.decode([*before, *self.ids[:count]])):
            count -= 1
        rest = shown[len(tokenizer.decode([*before, *self.ids[:count]])) :]
        return [*self.ids[:count], *(tokenizer.encode_as_text(rest) if rest else ())]


def check_room(prompt: Sequence[int], loaded: Loaded) -> None:
    context = loaded.engine.loaded.context
    if not prompt:
        raise ModelUnavailableError(
            f"the chat template of {loaded.info.name} makes nothing of a conversation",
            "give another with --chat-template FILE",
        )
    if len(prompt) >= context:
        raise ContextOverflowError(
            f"the conversation is {len(prompt)} tokens long, the context of {loaded.info.name} has {context}",
            "start anew with /clear, or shorten the message",
        )
    greatest = max(ids_of(prompt))
    if greatest >= loaded.engine.loaded.vocab_size:
        raise ModelUnavailableError(
            f"the tokenizer of {loaded.info.name} has the token {greatest},"
            f" and the model knows {loaded.engine.loaded.vocab_size}",
            "the tokenizer is another model's, so fetch the model again",
        )


def _explained(loaded: Loaded, events: Iterator[EngineEvent]) -> Generator[EngineEvent, None, None]:
    """The engine's events; scores that are no numbers become an error with its remedy."""
    try:
        yield from events
    except NoNumbersError as error:
        raise no_numbers(loaded.engine.loaded) from error


def effective_options(defaults: Options, given: Options) -> Options:
    """What the user gave over what the model's settings say.

    A temperature, or a wish for top-k, top-p or min-p, turns sampling on for a model whose settings are greedy.
    """
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens")
    values = {name: value for name in names if (value := getattr(given, name)) is not None}
    chosen = replace(defaults, **values, stop=(*defaults.stop, *given.stop))
    wants_sampling = any(name in values for name in ("top_k", "top_p", "min_p"))
    if wants_sampling and given.temperature is None and not defaults.temperature:
        return replace(chosen, temperature=1.0)
    return chosen


def was_measured(
    turns: Sequence[Turn], loaded: Loaded, is_cancelled: Callable[[], bool] = lambda: False
) -> bool:
    """Look at texts that may be longer than the context, piece by piece; False if that was cancelled.

    Raises ContextOverflowError for one that alone is too long, before all of it is encoded.
    """
    context, tokenizer = loaded.engine.loaded.context, loaded.tokenizer
    for turn in turns:
        if turn.tokenizer == tokenizer.id or len(turn.text) <= context:
            continue
        for count in tokenizer.least_tokens(turn.text):
            if is_cancelled():
                return False
            if count > context:
                raise ContextOverflowError(
                    f"the conversation is more than {count} tokens long, the context of {loaded.info.name} has {context}",
                    "start anew with /clear, or shorten the message",
                )
    return True


def never_begun(loaded: Loaded) -> Answer:
    """What becomes of a question that is cancelled while its length is looked at."""
    return Answer(
        text="",
        reasoning="",
        prompt=(),
        completion=(),
        tokenizer=loaded.tokenizer.id,
        finish_reason=FinishReason.CANCELLED,
        usage=base.Usage(0, 0, 0),
        timings=base.Timings(0, 0, 0, 0, 0, 0, 0, 0),
        cache=base.CacheReport(0, {}, 0, "it was cancelled before it began"),
    )


def conversation(loaded: Loaded, turns: Sequence[Turn]) -> tuple[ChatTemplate, list[Message]]:
    """The template at the conversation's time, and its messages; ids that the model does not have count for none.

    Raises ContextOverflowError.
    """
    was_measured(turns, loaded)
    template, limit = loaded.template.at(time_of(turns)), loaded.engine.loaded.vocab_size
    known = (turn if max(turn.tokens or (0,)) < limit else replace(turn, tokens=None) for turn in turns)
    return template, [message_of(turn, template) for turn in known]


def _splitter(marks: ReasoningMarks | None, *, is_open: bool) -> ReasoningSplitter:
    if marks is None:
        return ReasoningSplitter(None)
    return ReasoningSplitter((marks.start, marks.end), is_open=is_open, lead=marks.lead, tail=marks.tail)


def message_of(turn: Turn, template: ChatTemplate) -> Message:
    """A turn with its ids; an answer that has none of this tokenizer gets those of its text.

    One with reasoning stays text: where the reasoning's marks belong, its template says.
    """
    tokens: Sequence[int] | None = turn.tokens if turn.tokenizer == template.tokenizer.id else None
    if tokens is None and turn.role is Role.ASSISTANT and turn.text and not turn.reasoning:
        tokens = template.answer_ids(turn.text)
    return Message(turn.role.value, turn.text, turn.reasoning, tokens)


def _newly_encoded(turns: Sequence[Turn], messages: Sequence[Message]) -> tuple[base.Encoded, ...]:
    pairs = zip(turns, messages, strict=True)
    return tuple(
        base.Encoded(turn.text, tuple(message.tokens))
        for turn, message in pairs
        if message.tokens is not None and turn.tokens is not message.tokens
    )
