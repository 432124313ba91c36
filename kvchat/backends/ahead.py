"""A message that is still being typed: its prompt computed ahead, its answer begun and held back. Knows no keyboard.

All of it lies in the live state alone. It is handed out to the very question that it was computed for, and otherwise
forgotten: no block, no count and no report tells of it, but of how much work it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from kvchat.backends import base
from kvchat.backends.answering import Answering
from kvchat.backends.asking import Question, check_room, conversation
from kvchat.backends.base import Event, Keeping, Options, Reach, Role, Turn
from kvchat.backends.begun import BEGUN_TOKENS, Begun
from kvchat.backends.loading import Show, Talk
from kvchat.cache.block import common_prefix
from kvchat.engine.ahead import (
    LEAST_STEP,
    can_go_ahead,
    compute_ahead,
    has_room,
    keep_ways_back,
    step_tokens,
)
from kvchat.engine.request import Wanting, never
from kvchat.errors import KvchatError
from kvchat.models.kinds import ids_of


@dataclass(slots=True)
class Unsent:
    """What is live for a message that is not sent yet: all behind the first `floor` tokens, which are the conversation's.

    `said` are the turns before it. The first `held` tokens of its prompt were there before anything was computed for
    it; None as long as nothing was. `begun` is its answer.
    """

    said: tuple[Turn, ...]
    think: bool | None
    floor: int
    held: int | None = None
    begun: Begun | None = None


def _taken(talk: Talk) -> Unsent | None:
    """What was there for a message that is not sent, and is from now on in the caller's hands."""
    unsent, talk.unsent = talk.unsent, None
    return unsent if isinstance(unsent, Unsent) else None


def answering(
    talk: Talk,
    question: Question,
    keeping: Keeping,
    is_cancelled: Callable[[], bool],
    show: Show,
    started: float,
) -> Generator[Event | Wanting, None, None]:
    """The events of the answer to a question that was sent: of the one that was begun for it, or else of a new one.

    What was computed for other messages is forgotten before.
    """
    unsent = _taken(talk)
    begun = unsent.begun if unsent else None
    if begun is not None and begun.is_for(question, keeping):
        talk.typed = talk.typed.plus(used=begun.num_tokens, saved_s=begun.seconds)
        _count_used(talk, unsent, len(question.tokens) - 1)
        return begun.hand_out(is_cancelled, show, started)
    if begun is not None:
        begun.drop()
    if unsent is not None:
        state = talk.sequence.state
        live = state.keep(common_prefix(state.tokens, talk.model.engine.told(question.tokens)))
        if keeping.mode != "off":
            _count_used(talk, unsent, min(live, len(question.tokens) - 1))
    return Answering(talk, question, started=started).events(keeping, is_cancelled, show)


def forget(talk: Talk) -> None:
    """Let go of all that was computed for a message that is not sent."""
    unsent = _taken(talk)
    if unsent is None:
        return
    if unsent.begun is not None:
        unsent.begun.drop()
    talk.sequence.state.keep(unsent.floor)


def ahead(
    talk: Talk,
    turns: Sequence[Turn],
    options: Options,
    keeping: Keeping,
    reach: Reach,
    is_cancelled: Callable[[], bool],
    is_useless: Callable[[], bool] = never,
) -> Iterator[base.Ahead]:
    """Compute ahead for the message that `turns` end with, as it is now: up to where it can't change any more, or all of
    its prompt, or the beginning of its answer too. Without a message, what was computed for one is forgotten.

    `is_useless` says that another message is meant by now: the answer that was begun is then not waited for.
    """
    engine = talk.model.engine
    if not turns or turns[-1].role is not Role.USER:
        forget(talk)
        return
    if keeping.mode == "off" or not can_go_ahead(engine):
        return
    if talk.pulse.is_resting:
        yield base.Ahead(0, 0, is_resting=True)
        return
    with suppress(KvchatError):  # whoever sends the message is told
        approach = _Approach(talk, tuple(turns), options, keeping, is_cancelled)
        yield from approach.typed() if reach is Reach.TYPED else approach.whole(reach, is_useless)


class _Approach:
    """One call: how far the message is, and the steps that are left."""

    def __init__(
        self,
        talk: Talk,
        turns: tuple[Turn, ...],
        options: Options,
        keeping: Keeping,
        is_cancelled: Callable[[], bool],
    ) -> None:
        self._talk = talk
        self._engine = talk.model.engine
        self._state = talk.sequence.state
        self._turns = turns
        self._options = options
        self._keeping = keeping
        self._is_cancelled = is_cancelled

    def typed(self) -> Iterator[base.Ahead]:
        """Compute the prompt up to where more typing hardly changes it."""
        template, messages = conversation(self._talk.model, self._turns)
        tokens = template.typed_prefix(messages, think=self._options.think)
        check_room(ids_of(tokens), self._talk.model)
        unsent = self._unsent()
        if unsent.begun is not None:
            unsent.begun.drop()
            unsent.begun = None
        yield from self._prefill(self._engine.told(tokens), unsent)

    def whole(self, reach: Reach, is_useless: Callable[[], bool]) -> Iterator[base.Ahead]:
        """Compute all of the prompt, and with its last token the first of the answer; go on with that, or not.

        What fits into one step is left to the answer: one forward over a few tokens takes as long as over one.
        """
        question = Question.of(self._talk.model, self._turns, self._options)
        known = self._engine.told(question.tokens)[:-1]
        unsent = self._unsent()
        begun = unsent.begun
        if begun is not None and not begun.is_for(question, self._keeping):
            begun.drop()
            unsent.begun = begun = None
        if begun is None and not self._is_one_step(known):
            yield from self._prefill(known, unsent)
        if begun is not None or self._is_one_step(known):
            unsent.begun = begun or Begun(self._talk, question, self._keeping, is_useless)
            yield from self._decode(unsent, known, BEGUN_TOKENS if reach is Reach.BEGUN else 1)

    def _is_one_step(self, known: Sequence[int]) -> bool:
        """Whether all but the last token of a prompt is live, or nearly all where that may be left to its answer."""
        rest = len(known) - common_prefix(self._state.tokens, known)
        return rest == 0 or (self._state.is_divisible and rest < step_tokens(self._engine, self._state))

    def _unsent(self) -> Unsent:
        """What is live for the message; anew where it is typed somewhere else."""
        talk, said, think = self._talk, self._turns[:-1], self._options.think
        unsent = talk.unsent
        if isinstance(unsent, Unsent) and (unsent.said, unsent.think) == (said, think):
            return unsent
        forget(talk)
        template, messages = conversation(talk.model, self._turns)
        nothing = [*messages[:-1], replace(messages[-1], text="")]
        unsent = talk.unsent = Unsent(said, think, len(template.next_prefix(nothing, think=think)))
        return unsent

    def _prefill(self, tokens: Sequence[int], unsent: Unsent) -> Iterator[base.Ahead]:
        floor = min(unsent.floor, len(tokens))
        if not self._state.is_divisible:  # the way back from whatever is typed
            yield from self._compute(tokens[:floor], unsent)
            self._state.take()
        yield from self._compute(tokens, unsent)
        keep_ways_back(self._state, floor, len(self._state.tokens), len(tokens) - 1)

    def _compute(self, tokens: Sequence[int], unsent: Unsent) -> Iterator[base.Ahead]:
        if not tokens or common_prefix(self._state.tokens, tokens) == len(tokens):
            return
        total, done = max(0, len(tokens) - unsent.floor), 0
        started = time.perf_counter()
        for progress in compute_ahead(self._engine, self._talk.sequence, tokens, self._is_cancelled):
            seconds, new = time.perf_counter() - started, progress.done - done
            done = progress.done
            if unsent.held is None:
                unsent.held = progress.reuse.num_tokens
            self._count(new, seconds, compared=max(LEAST_STEP, new) if new else 0)
            yield base.Ahead(max(0, len(self._state.tokens) - unsent.floor), total)
            if self._talk.pulse.is_resting:
                return
            started = time.perf_counter()

    def _decode(self, unsent: Unsent, known: Sequence[int], num_tokens: int) -> Iterator[base.Ahead]:
        """Make the answer's first tokens, so many of them, behind a prompt of which `known` is all but the last token."""
        begun = unsent.begun
        assert begun is not None
        total, live = max(0, len(known) - unsent.floor), common_prefix(self._state.tokens, known)
        if unsent.held is None:
            unsent.held = live
        while not (begun.has(num_tokens) or begun.is_useless() or self._is_cancelled()):
            if self._talk.pulse.is_resting or not has_room(self._state, len(known) - live + LEAST_STEP):
                return
            before, held = begun.num_tokens, len(self._state.tokens)
            try:
                seconds = begun.step(self._is_cancelled)
            except BaseException:
                begun.drop()
                unsent.begun = None
                raise
            new, rest = begun.num_tokens - before, len(known) - live
            live = common_prefix(self._state.tokens, known)
            rest -= len(known) - live
            # A token that was guessed right is there at once: its time says nothing of the machine.
            is_usual = not rest and len(self._state.tokens) == held + 1
            self._count(new + rest, seconds, compared=int(is_usual))
            yield base.Ahead(max(0, live - unsent.floor), total, begun.num_tokens)

    def _count(self, tokens: int, seconds: float, *, compared: int) -> None:
        """Note what a step computed; as one of `compared` tokens it says something of the machine, of 0 nothing."""
        talk = self._talk
        talk.idle = talk.idle.plus(tokens, seconds)
        talk.typed = talk.typed.plus(tokens=tokens, seconds=seconds)
        if compared:
            talk.pulse.beat(compared, seconds)


def _count_used(talk: Talk, unsent: Unsent | None, num_tokens: int) -> None:
    """The first `num_tokens` of a prompt were live when it was sent; note what of them was computed ahead."""
    if unsent is not None and unsent.held is not None and num_tokens > unsent.held:
        used = num_tokens - unsent.held
        talk.typed = talk.typed.plus(used=used, saved_s=talk.model.engine.pace.saved_s(used))
