"""A conversation made shorter on request: what is told of its oldest messages, and which stay word for word. Knows no terminal."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from kvchat.backends.base import Answer, Done, Event, FinishReason, Options, Role, Turn
from kvchat.chat.answering import Answering, Events
from kvchat.chat.noting import fitting, listed, notes
from kvchat.chat.telling import first_word_for_word, told
from kvchat.chat.tree import Exchange, new_id
from kvchat.errors import KvchatError, UsageError

SUMMARY_REQUEST = "Summarise our conversation so far in at most 150 words. Keep names, numbers, decisions and open questions."
"""What the model is asked to compact a conversation; the summary then stands behind this message. Before it stand those of
the user's own sentences that state a fact or an instruction, for a summary loses them easily."""
NOTES = 0.15
"""So much of the context these sentences may take."""
SUMMARY_TOKENS = 300
"""Longest summary; in a small context an eighth of it."""
_LEAST_TOKENS = 32
_NOTES_BYTES = 4000  # where nobody knows the context
_BYTES_A_TOKEN = 3
_NOTED = replace(Answer.cut_short("kvchat wrote it", text="Noted."), finish_reason=FinishReason.STOP)


class StoppedError(Exception):
    """The summary was cancelled."""


class Shortening(Answering):
    """A conversation of which the model need not be told all.

    What was said stays where it is, in the tree and on the path; a summary stands beside it, and `history` tells that
    instead of what it stands for. `expand` takes it back.
    """

    _num_pinnings = 0
    """How many times something was pinned or unpinned."""

    def pin(self, number: int = -1, *, is_pinned: bool = True) -> Exchange:
        """Keep message `number` (from 1; -1 is the last) and its answer word for word in every prompt, or no longer.

        Raises UsageError.
        """
        path = self.path
        if not 1 <= abs(number) <= len(path):
            if not path:
                raise UsageError("there is no message yet", "say something first")
            raise UsageError(f"there is no message {number}", f"give a number from 1 to {len(path)}")
        exchange = replace(path[number - (number > 0)], is_pinned=is_pinned)
        self._tree.put(exchange)
        self._journal.pin(exchange)
        self._num_pinnings += 1
        return exchange

    @property
    def pinned(self) -> tuple[int, ...]:
        """The numbers of the messages that are pinned, from 1."""
        return tuple(number for number, exchange in enumerate(self.path, 1) if exchange.is_pinned)

    @property
    def word_for_word(self) -> tuple[Exchange, ...]:
        """The end of the path, of which everything is told."""
        path = self.path
        return path[first_word_for_word(path, self._in_force(path)) :]

    def compact(self, keep: int = 2) -> Events:
        """Let the model summarise all but the last `keep` exchanges, and tell it that from then on.

        A summary that is cancelled changes nothing. Raises UsageError unless there is something to summarise.
        """
        return self._compacted(self._older(keep))

    def compaction(self, keep: int) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
        """What the model is asked to `compact`, and the conversation after that with an empty summary."""
        older = self._older(keep)
        head = self._new_summary(older, self._request(older))
        return self._history([*older, head], self._in_force(older)), self._history(self.path, head)

    def drop_oldest(self, num_exchanges: int) -> None:
        """Tell the model nothing of the oldest exchanges that it is still told word for word; a summary before stays.

        Raises UsageError unless one at least is left.
        """
        self._put_in_force(self._left_out(self._oldest(num_exchanges)))

    def without_oldest(self, num_exchanges: int) -> tuple[Turn, ...]:
        """The history that `drop_oldest` leaves. Raises UsageError as it does."""
        return self._history(self.path, self._left_out(self._oldest(num_exchanges)))

    def expand(self) -> Exchange | None:
        """Tell the model again what the last summary stands for; the summary before, if there is one, is in force again.

        Raises UsageError if there is none.
        """
        summary = self.summary
        if summary is None:
            raise UsageError("the model is told the whole conversation", "there is nothing to expand")
        self._summary = summary.follows or None
        self._move_to(self._tip)
        return self.summary

    # How it is done

    def _older(self, keep: int) -> tuple[Exchange, ...]:
        """The path without its last exchanges. Raises UsageError where all of that is summarised already."""
        if not 0 <= keep < len(self.word_for_word):
            raise UsageError(
                f"nothing comes before the last {keep} messages", "there is nothing to summarise"
            )
        path = self.path
        return path[: len(path) - keep]

    def _oldest(self, num_exchanges: int) -> tuple[Exchange, ...]:
        """The path up to the last that is to be dropped. Raises UsageError."""
        path, count = self.path, len(self.word_for_word)
        if not 1 <= num_exchanges < count:
            raise UsageError(f"can't drop {num_exchanges} of {count} messages", "at least one has to stay")
        return path[: len(path) - count + num_exchanges]

    def _history(self, path: Sequence[Exchange], summary: Exchange | None) -> tuple[Turn, ...]:
        """What the model is told of a path with a summary, which the tree need not have."""
        return self._headed(told(path, summary))

    def _noted(self, older: Sequence[Exchange]) -> str:
        """The user's own sentences that stay word for word when these exchanges are told as a summary."""
        context = self.backend.info().context
        most_bytes = int(NOTES * context) * _BYTES_A_TOKEN if context else _NOTES_BYTES
        return listed(fitting([*notes(one for one in older if not one.is_pinned)], most_bytes))

    def _request(self, older: Sequence[Exchange]) -> str:
        return "\n\n".join(filter(None, (self._noted(older), SUMMARY_REQUEST)))

    def _new_summary(self, older: Sequence[Exchange], asked: str) -> Exchange:
        """A summary of the exchanges of a path up to here, still to be made."""
        request, before = Turn(Role.USER, asked), self._in_force(older)
        return Exchange(
            id=new_id(),
            parent=older[-1].id,
            user=request,
            options=self.chosen,
            model=self.model,
            created=time.time(),
            follows=before.id if before else "",
        )

    def _left_out(self, older: Sequence[Exchange]) -> Exchange:
        """A summary that stands for exchanges of which it tells nothing, but for what one before it told."""
        new, before = self._new_summary(older, ""), self._in_force(older)
        if before is None or before.answer is None:
            return new
        return replace(new, user=before.user, answer=replace(before.answer, kv_root="", kv_tip=""))

    def _only_noted(self, older: Sequence[Exchange]) -> Exchange:
        """A summary that tells of exchanges the user's own sentences alone, and what one before it told."""
        new, noted = self._left_out(older), self._noted(older)
        if not noted:
            return new
        if new.answer is None:
            return replace(new, user=Turn(Role.USER, noted), answer=_NOTED)
        asked = (noted, SUMMARY_REQUEST) if new.answer.text != _NOTED.text else (noted,)
        return replace(new, user=Turn(Role.USER, "\n\n".join(asked)))

    def _summarised(self, older: Sequence[Exchange]) -> Generator[Event, None, Exchange]:
        """Let the model make a summary; its events, and in the end the summary with whatever came of it."""
        head = self._new_summary(older, self._request(older))
        turns = self._history([*older, head], self._in_force(older))
        with closing(_closable(self.backend.answer(turns, self._summary_options()))) as events:
            for event in events:
                if isinstance(event, Done):
                    head = replace(head, answer=replace(event.answer, prompt=(), encoded=()))
                    self.totals = self.totals.plus(event.answer)
                    self._journal.count(event.answer)
                yield event
        return head

    def _summary_options(self) -> Options:
        """A summary takes no chances, may say again what was said, does not think aloud and has an end."""
        options = replace(
            self.chosen, temperature=0.0, repetition_penalty=1.0, stop=(), think=False, seed=None
        )
        return replace(options, max_tokens=self._summary_tokens())

    def _summary_tokens(self) -> int:
        context = self.backend.info().context
        return min(SUMMARY_TOKENS, max(_LEAST_TOKENS, context // 8)) if context else SUMMARY_TOKENS

    def _compacted(self, older: Sequence[Exchange]) -> Events:
        summary = yield from self._summarised(older)
        answer = summary.answer
        if answer is None or answer.finish_reason.is_cut:
            return
        if not answer.text.strip():
            raise KvchatError("the model gave no summary", "try again, or drop the oldest messages")
        self._put_in_force(summary)

    def _put_in_force(self, summary: Exchange) -> None:
        """Tell it from now on."""
        self._tree.put(summary)
        self._summary = summary.id
        self._journal.summary(self._tree.path(summary.id))
        self._move_to(self._tip)


def flaw(answer: Answer) -> str:
    """What is wrong with a summary, as the end of a sentence; empty for a sound one."""
    if answer.finish_reason is FinishReason.REPETITION:
        return "kept repeating itself"
    if answer.finish_reason is FinishReason.LENGTH:
        return "was too long"
    return "" if answer.text.strip() else "was empty"


def _closable(events: Iterator[Event]) -> Events:
    yield from events
