"""Turns -> the question that the engine is asked: the prompt's tokens, and how to go on behind them. Computes no answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace

from kvchat.backends.base import MAX_TOKENS, Encoded, Options, Role, Turn, time_of
from kvchat.backends.loading import ReadyModel
from kvchat.backends.text import ReasoningSplitter
from kvchat.engine.request import Request
from kvchat.engine.sampling import Length, SamplingParams
from kvchat.engine.token_rules import TokenRules
from kvchat.errors import NO_ROOM, ContextOverflowError, ModelUnavailableError, UsageError
from kvchat.models.kinds import as_generated, ids_of
from kvchat.models.text.template import ChatTemplate, Message


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation to be answered. `tokens` are its whole prompt and `ids` their ids; the first `shared` come before
    anything that the user says, the last are `unfinished`, those of an answer to go on with. `encoded` are the answers
    of other models, and the prompt itself `opens_reasoning` or doesn't."""

    turns: tuple[Turn, ...]
    tokens: list[int]
    ids: list[int]
    shared: int
    unfinished: list[int]
    options: Options
    opens_reasoning: bool
    encoded: tuple[Encoded, ...]

    @classmethod
    def of(cls, model: ReadyModel, turns: Sequence[Turn], options: Options) -> Question:
        """What `turns` ask of a model. Raises ContextOverflowError, and ModelUnavailableError for no prompt."""
        if is_bare(turns):
            return cls._bare(model, turns, options)
        template, messages = conversation(model, turns)
        tokens = template.tokens(messages, think=options.think)
        ids = model.ids.of(tokens)
        check_room(ids, model)
        return cls(
            turns=tuple(turns),
            tokens=tokens,
            ids=ids,
            shared=template.shared_tokens(messages, think=options.think),
            unfinished=template.unfinished(messages),
            options=effective_options(model.info.defaults, options),
            opens_reasoning=template.opens_reasoning(messages, think=options.think),
            encoded=_newly_encoded(turns, messages),
        )

    @classmethod
    def _bare(cls, model: ReadyModel, turns: Sequence[Turn], options: Options) -> Question:
        """A prompt without a template; what is answered is text as it comes."""
        tokens = prompt_tokens(model, turns, None)
        ids = ids_of(tokens)
        if not ids or max(ids) >= model.engine.loaded.vocab_size:
            raise UsageError("the prompt is empty, or has ids that the model doesn't know", "send another")
        check_room(ids, model)
        unfinished = list(turns[-1].tokens or ()) if turns[-1].role is Role.ASSISTANT else []
        chosen = effective_options(model.info.defaults, options)
        return cls(tuple(turns), tokens, ids, 0, unfinished, chosen, False, ())

    def request(self, model: ReadyModel, *, reuse: bool, stores: bool) -> Request:
        """The same for the engine."""
        options, loaded = self.options, model.engine.loaded
        stop_ids = loaded.eos_ids | set(model.template.closing_ids)
        rules = TokenRules.of(
            loaded.generation_defaults,
            frozenset(stop_ids),
            prompt_tokens=len(self.ids),
            unfinished_tokens=len(self.unfinished),
        )
        sampling = SamplingParams(
            temperature=options.temperature or 0.0,
            top_k=options.top_k or 0,
            top_p=1.0 if options.top_p is None else options.top_p,
            min_p=options.min_p or 0.0,
            repetition_penalty=options.repetition_penalty or 1.0,
            seed=options.seed,
            ends=frozenset(stop_ids),
            length=Length(*loaded.generation_defaults.get("exponential_decay_length_penalty", ())),
            rules=rules,
        )
        return Request(
            prompt=self.tokens,
            sampling=sampling,
            max_tokens=options.max_tokens,
            stop_ids=stop_ids,
            shared=self.shared,
            reuse=reuse,
            stores=stores,
            top_logprobs=options.top_logprobs,
        )

    def splitter(self, model: ReadyModel) -> ReasoningSplitter:
        """What tells the answer's reasoning from the answer."""
        marks = model.template.marks
        if marks is None or is_bare(self.turns):
            return ReasoningSplitter(None)
        return ReasoningSplitter(
            (marks.start, marks.end), is_open=self.opens_reasoning, lead=marks.lead, tail=marks.tail
        )


def is_bare(turns: Sequence[Turn]) -> bool:
    """Whether a history is a prompt without a template."""
    return bool(turns) and turns[0].role is Role.PROMPT


def prompt_tokens(model: ReadyModel, turns: Sequence[Turn], think: bool | None) -> list[int]:
    """The tokens of the prompt that a history is. From any thread."""
    if not is_bare(turns):
        template, messages = conversation(model, turns)
        return copy(template).tokens(messages, think=think)
    was_measured(turns, model)
    tokens: list[int] = []
    for number, turn in enumerate(turns):
        if turn.role is Role.ASSISTANT:
            tokens += as_generated(turn.tokens or model.tokenizer.encode_as_text(turn.text))
        elif turn.tokens is not None:
            tokens += turn.tokens
        else:
            encode = model.tokenizer.encode if number else model.tokenizer.encode_whole
            tokens += encode(turn.text)
    return tokens


def conversation(model: ReadyModel, turns: Sequence[Turn]) -> tuple[ChatTemplate, tuple[Message, ...]]:
    """The template at the conversation's time, and its messages; ids that the model does not have count for none.

    Raises ContextOverflowError.
    """
    was_measured(turns, model)
    template = model.template.at(time_of(turns))
    if tools := next((turn.tools for turn in turns if turn.tools), ""):
        template = template.with_tools(tools)
    return template, model.messages.of(tuple(turns), template, model.engine.loaded.vocab_size)


def was_measured(
    turns: Sequence[Turn], model: ReadyModel, is_cancelled: Callable[[], bool] = lambda: False
) -> bool:
    """Look at texts that may be longer than the context, piece by piece; False if that was cancelled.

    Raises ContextOverflowError for one that alone is too long, before all of it is encoded.
    """
    context, tokenizer = model.engine.loaded.context, model.tokenizer
    for turn in turns[model.messages.num_known(tuple(turns)) :]:
        if turn.tokenizer == tokenizer.id or len(turn.text) <= context:
            continue
        for count in tokenizer.least_tokens(turn.text):
            if is_cancelled():
                return False
            if count > context:
                raise ContextOverflowError(
                    f"the conversation is more than {count} tokens long, the context of {model.info.name} has {context}",
                    NO_ROOM,
                )
    return True


def check_room(ids: Sequence[int], model: ReadyModel) -> None:
    """Raises ContextOverflowError for a prompt that leaves no room, ModelUnavailableError for one that is none."""
    name, loaded = model.info.name, model.engine.loaded
    if not ids:
        raise ModelUnavailableError(
            f"the chat template of {name} makes nothing of a conversation",
            "give another with --chat-template FILE",
        )
    if len(ids) >= loaded.context:
        raise ContextOverflowError(
            f"the conversation is {len(ids)} tokens long, the context of {name} has {loaded.context}",
            NO_ROOM,
        )
    if (greatest := max(ids)) >= loaded.vocab_size:
        raise ModelUnavailableError(
            f"the tokenizer of {name} has the token {greatest}, and the model knows {loaded.vocab_size}",
            "the tokenizer is another model's, so fetch the model again",
        )


def effective_options(defaults: Options, given: Options) -> Options:
    """What the user gave over what the model's settings say.

    A temperature, or a wish for top-k, top-p or min-p, turns sampling on for a model whose settings are greedy.
    """
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens")
    values = {name: value for name in names if (value := getattr(given, name)) is not None}
    own = {"stop": (*defaults.stop, *given.stop), "repeat_stop": given.repeat_stop}
    chosen = replace(defaults, **values, **own, top_logprobs=given.top_logprobs)  # type: ignore[arg-type]
    if chosen.max_tokens is None:
        chosen = replace(chosen, max_tokens=MAX_TOKENS)
    wants_sampling = any(name in values for name in ("top_k", "top_p", "min_p"))
    if wants_sampling and given.temperature is None and not defaults.temperature:
        return replace(chosen, temperature=1.0)
    return chosen


def _newly_encoded(turns: Sequence[Turn], messages: Sequence[Message]) -> tuple[Encoded, ...]:
    pairs = zip(turns, messages, strict=True)
    return tuple(
        Encoded(turn.text, tuple(message.tokens))
        for turn, message in pairs
        if message.tokens is not None and turn.tokens is not message.tokens
    )
