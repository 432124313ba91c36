"""One conversation with a backend: what is said, answered, answered again and continued. Knows no torch, no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from types import TracebackType

from kvchat.backends.base import (
    Ahead,
    Backend,
    Done,
    Event,
    FinishReason,
    Options,
    Prefilling,
    Reach,
    Text,
    Turn,
)
from kvchat.chat.answering import Answering, Events
from kvchat.chat.store import Store
from kvchat.chat.tree import Exchange, is_unfinished
from kvchat.chat.tree import is_empty as is_empty
from kvchat.chat.tree import new_id as new_id
from kvchat.config import Config
from kvchat.errors import KvchatError, UsageError

SUMMARY_REQUEST = "Summarise our conversation so far in at most 150 words. Keep names, numbers, decisions and open questions."
"""What the model is asked to compact a conversation; the summary then stands behind this message."""


class Session(Answering):
    """A conversation with a backend, and its verbs. `options` and `model` may be replaced between two messages.

    All verbs that ask return the backend's events, the last of them `Done`. Closing them early cancels the answer and
    keeps what was generated. They raise KvchatError as `Backend.answer` does.
    """

    def __init__(
        self,
        backend: Backend,
        options: Options | None = None,
        system: str | None = None,
        *,
        store: Store | None = None,
        model: str = "",
    ) -> None:
        super().__init__(backend, options or Options(), system, store=store, model=model)
        self._typed_since: float | None = None

    @classmethod
    def from_config(cls, backend: Backend, config: Config, *, store: Store | None = None) -> Session:
        """A session with the sampling options, the system prompt and the store of the settings."""
        store = store or Store.from_config(config)
        options = Options(**asdict(config.sampling))
        session = cls(backend, options, config.chat.system, store=store, model=config.model.name)
        session.set_system(config.chat.system, pinned=config.chat.pin)
        return session

    def send(self, text: str) -> Events:
        """Say something."""
        yield from self._answered(self._new_exchange(text, self._tip))

    def stream(self, text: str) -> Iterator[str]:
        """Say something and yield the answer's text as it comes, without its reasoning."""
        with closing(self.send(text)) as events:
            for event in events:
                if isinstance(event, Text) and not event.reasoning:
                    yield event.text

    def ask(self, text: str) -> str:
        """Say something and return the whole answer, without its reasoning."""
        return "".join(self.stream(text))

    def retry(self, *, temperature: float | None = None) -> Events:
        """Answer the last message again, as a branch; the earlier answer stays. Raises UsageError.

        With a `temperature` it is drawn at that, whatever the options say: greedy answers are all the same.
        """
        tip = self._needed_tip("answer")
        if tip.answer is None:
            return self._answered(tip)
        return self._answered(self._new_exchange(tip.user.text, tip.parent), temperature)

    def edit(self, number: int, text: str) -> Events:
        """Say `text` instead of message `number` (from 1; -1 is the last), as a branch. Raises UsageError."""
        path = self.path
        if not 1 <= abs(number) <= len(path):
            if not path:
                raise UsageError("there is no message to edit", "say something first")
            raise UsageError(f"there is no message {number}", f"give a number from 1 to {len(path)}")
        return self._answered(self._new_exchange(text, path[number - (number > 0)].parent))

    def continue_answer(self) -> Events:
        """Go on with the last answer where it stopped; `Done` has all of it. Raises UsageError if it is complete."""
        tip = self._needed_tip("continue")
        if tip.answer is not None and not is_unfinished(tip.answer):
            raise UsageError("the last answer is complete", "say something, or /retry for another answer")
        if tip.answer is not None and self._tree.has_children(tip.id):
            tip = replace(
                tip, id=new_id(), created=time.time()
            )  # what follows was said to the shorter answer
        return self._answered(tip)

    def prepare(self) -> int:
        """Compute ahead what the next message's prompt begins with; how many tokens that were.

        Behind an answer it is 0 for most models: only where the template drops reasoning from the past, or rewrites it,
        is there something to do. After a move all that is not held is computed. Waits for its end; in another thread it
        may be called while the user reads, for it ends as soon as something is asked, and what was computed stays.
        Raises KvchatError as `Backend.answer` does.
        """
        done, history = 0, self.history
        if history:
            for event in self.backend.prepare(history, self.chosen):
                done = event.done if isinstance(event, Prefilling) else done
        return done

    def ahead(self, text: str, reach: Reach) -> Iterator[Ahead]:
        """Compute ahead for a message that is being typed, as far as `reach`, as if it were sent now; nothing of it is
        kept here. Without a text, what was computed is dropped. Raises KvchatError as `Backend.answer` does.
        """
        if not text:
            return self.backend.ahead((), self.chosen, reach)
        exchange = self._new_exchange(text, self._tip)
        turns = self.history_of([*self.path, exchange])
        if turns[0].time_s is None:  # the first message: about when it is sent
            self._typed_since = self._typed_since or time.time()
            turns = (replace(turns[0], time_s=self._typed_since), *turns[1:])
        return self.backend.ahead(turns, self._options_of(exchange), reach)

    @property
    def place(self) -> tuple[object, ...]:
        """What the next prompt begins with depends on this; another place where it is not equal."""
        return self.backend, self._tip, self.last, self._system, self._is_pinned, self.chosen.think

    def compact(self, keep: int = 2) -> Events:
        """Let the model summarise all but the last `keep` exchanges and go on with that, as a branch.

        A summary that is cancelled changes nothing. Raises UsageError unless there is something to summarise.
        """
        return self._compacted(*self._parted(keep))

    def compaction(self, keep: int) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
        """What the model is asked to `compact`, and the conversation after that with an empty summary."""
        older, recent = self._parted(keep)
        head = self._new_exchange(SUMMARY_REQUEST, None)
        return self.history_of([*older, head]), self.history_of([head, *recent])

    def change_model(self, name: str, backend: Backend) -> None:
        """Go on with another model. It has to be loaded; the one before is closed."""
        self.tokenizer = backend.info().tokenizer
        before, self.backend, self.model = self.backend, backend, name
        before.close()

    def close(self) -> None:
        """End the backend, and close the store; needed once for all sessions that share them."""
        self._journal.settle(self.path)
        self.backend.close()
        self.store.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # How it is done

    def _needed_tip(self, verb: str) -> Exchange:
        tip = self.tip
        if tip is None:
            raise UsageError(f"there is nothing to {verb}", "say something first")
        return tip

    def _parted(self, keep: int) -> tuple[tuple[Exchange, ...], tuple[Exchange, ...]]:
        path = self.path
        if not 0 <= keep < len(path):
            raise UsageError(
                f"nothing comes before the last {keep} messages", "there is nothing to summarise"
            )
        return path[: len(path) - keep], path[len(path) - keep :]

    def _compacted(self, older: tuple[Exchange, ...], recent: tuple[Exchange, ...]) -> Events:
        head = self._new_exchange(SUMMARY_REQUEST, None)
        turns, options = self.history_of([*older, head]), self._options_of(head)
        with closing(_closable(self.backend.answer(turns, options))) as events:
            for event in events:
                if isinstance(event, Done):
                    self._keep_summary(replace(head, answer=event.answer), recent)
                yield event

    def _keep_summary(self, summary: Exchange, recent: tuple[Exchange, ...]) -> None:
        answer = summary.answer
        if answer is None or answer.finish_reason is FinishReason.CANCELLED:
            return
        if not answer.text.strip():
            raise KvchatError("the model gave no summary", "try again, or drop the oldest messages")
        self.totals = self.totals.plus(answer)
        self._graft([replace(summary, answer=replace(answer, prompt=(), encoded=())), *recent])
        self._journal.count(answer)


def _closable(events: Iterator[Event]) -> Events:
    yield from events
