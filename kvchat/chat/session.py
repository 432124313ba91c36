"""One conversation with a backend: what is said, answered, answered again and continued. Knows no torch, no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, replace
from types import TracebackType

from kvchat.backends.base import Ahead, Backend, Options, Prefilling, Reach, Text
from kvchat.chat.answering import Events
from kvchat.chat.room import WhenFull as WhenFull
from kvchat.chat.shortening import SUMMARY_REQUEST as SUMMARY_REQUEST
from kvchat.chat.shortening import StoppedError
from kvchat.chat.store import Store
from kvchat.chat.titling import Titling
from kvchat.chat.tree import Exchange, is_unfinished
from kvchat.chat.tree import is_empty as is_empty
from kvchat.chat.tree import new_id as new_id
from kvchat.config import Config
from kvchat.errors import UsageError


class Session(Titling):
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
        session.when_full = WhenFull(config.chat.when_full or WhenFull.OFF)
        session.prepares = config.cache.prepare
        session.titles = config.chat.titles == "auto" and config.chat.save
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
        summary = self.summary
        if summary is not None and summary.parent == tip.id:
            self.expand()  # nothing would be told behind the summary that goes on
        if tip.answer is not None and self._tree.has_children(tip.id):
            tip = replace(
                tip, id=new_id(), created=time.time()
            )  # what follows was said to the shorter answer
        return self._answered(tip)

    def prepare(self) -> int:
        """Compute ahead what the next message's prompt begins with; how many tokens that were.

        Behind an answer it is 0 for most models: only where the template drops reasoning from the past, or rewrites it,
        is there something to do. After a move all that is not held is computed. If the context is getting full and
        `when_full` is `auto` or `drop`, room is made. Waits for its end; in another thread it may be called while the user
        reads, for it ends as soon as something is asked, and what was computed stays.
        Raises KvchatError as `Backend.answer` does.
        """
        with suppress(StoppedError), closing(self._room_ahead()) as events:
            for _ in events:
                if self._is_asked:
                    return 0
        done, history = 0, self._next_history(self.path)
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
        turns = self._next_history([*self.path, exchange])
        if turns[0].time_s is None:  # the first message: about when it is sent
            self._typed_since = self._typed_since or time.time()
            turns = (replace(turns[0], time_s=self._typed_since), *turns[1:])
        return self.backend.ahead(turns, self._options_of(exchange), reach)

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
