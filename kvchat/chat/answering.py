"""A conversation that is answered: makes the answer of an exchange, saves it as it comes, and keeps what came of it.

Knows none of the verbs that ask.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import replace

from kvchat.backends.base import Answer, Backend, Done, Event, Notice, Options, Text
from kvchat.chat.conversation import Conversation
from kvchat.chat.incoming import Incoming
from kvchat.chat.store import Store
from kvchat.chat.tree import Exchange, derived_seed, is_empty, joined
from kvchat.errors import KvchatError

Events = Generator[Event, None, None]

DRAWN_TOP_P = 0.9
"""The nucleus from which another answer is drawn: what is hardly likely spoils the answers of small models."""


class Answering(Conversation):
    """A conversation with a backend.

    What stays of a message: an answer that ended, was cut by its length or was cancelled after its first token
    is kept with its message. After an error, or a cancel before the first token, the message is taken back, so
    that the conversation is what it was before and the same text can be sent again.

    The message is saved before the backend is asked, the answer's text every second and at its end.
    """

    def __init__(
        self, backend: Backend, options: Options, system: str | None, *, store: Store | None, model: str
    ) -> None:
        super().__init__(options, system, store=store, model=model)
        self.backend = backend
        self._newest = ""  # the exchange whose answer has its prompt

    def _answered(self, exchange: Exchange, temperature: float | None = None) -> Events:
        """Make the answer of an exchange, or the rest of it; if nothing comes of it all is as before."""
        incoming = Incoming(exchange, back_to=self._tip, is_new=exchange.id not in self._tree)
        events: Iterator[Event] = iter(())
        options = self._options_of(exchange)
        if temperature is not None:
            options = replace(options, temperature=temperature, top_p=options.top_p or DRAWN_TOP_P)
        self._tree.put(replace(exchange, options=replace(options, seed=self.chosen.seed), model=self.model))
        try:
            self._move_to(exchange.id)
            yield from self._notices()
            self._learn_tokenizer()
            events = self.backend.answer(self.history, options)
            yield from self._followed(events, incoming)
        except GeneratorExit:
            self._finish_cancelled(events, incoming)
            raise
        except (KeyboardInterrupt, SystemExit):
            self._keep(incoming, incoming.cancelled())
            raise
        finally:
            if not incoming.kept:
                self._take_back(incoming)

    def _options_of(self, exchange: Exchange) -> Options:
        """How to make an answer: with draws of its own, the same wherever the same is said in the same place."""
        options, seed = self.chosen, self.chosen.seed
        if seed is None:
            return options
        place = len(self._tree.path(exchange.parent)), self._tree.tries(exchange), len(exchange.said)
        return replace(options, seed=derived_seed(seed, *place))

    def _followed(self, events: Iterator[Event], incoming: Incoming) -> Events:
        """The events as they come, saved on the way; `Done` gets the whole answer."""
        for event in events:
            if isinstance(event, Text) and incoming.take(event, time.monotonic()):
                self._journal.incoming(incoming.exchange.id, *incoming.whole)
            elif isinstance(event, Done):
                event = Done(self._keep(incoming, event.answer))
                yield from self._notices()
            yield event

    def _keep(self, incoming: Incoming, new: Answer) -> Answer:
        """Keep an answer unless it is empty; the whole answer, with what was there before."""
        before = incoming.exchange.answer
        if is_empty(new):
            return before or new
        whole = joined(before, new) if before else new
        self._put(replace(self._tree[incoming.exchange.id], answer=whole))
        incoming.kept = True
        self.totals = self.totals.plus(new)
        self._journal.answer(self._tree.path(incoming.exchange.id))
        self._journal.count(new)
        self._keep_encoded(new)
        return whole

    def _put(self, exchange: Exchange) -> None:
        """Put the newest answer into the tree; the one before gives up its prompt's ids, which are all that was said."""
        before, self._newest = self._newest, exchange.id
        if before != exchange.id and before in self._tree and (answer := self._tree[before].answer):
            self._tree.put(replace(self._tree[before], answer=replace(answer, prompt=(), encoded=())))
        self._tree.put(exchange)

    def _keep_encoded(self, answer: Answer) -> None:
        """Keep the ids that earlier answers have in this tokenizer beside those that they were generated with."""
        known = {encoded.text: encoded.tokens for encoded in answer.encoded}
        self.tokenizer = answer.tokenizer or self.tokenizer
        for exchange in self.path if known else ():
            ids = known.get(exchange.answer.text) if exchange.answer else None
            if exchange.answer and ids is not None and exchange.answer.tokenizer != answer.tokenizer:
                encoded = {**exchange.encoded, answer.tokenizer: ids}
                self._tree.put(replace(exchange, encoded=encoded))
                self._journal.encoded(exchange.id, answer.tokenizer, ids)

    def _finish_cancelled(self, events: Iterator[Event], incoming: Incoming) -> None:
        """Drain an abandoned answer to its end, for the exact ids of what was generated."""
        if incoming.kept:
            return
        self.backend.cancel()
        try:
            for event in events:
                if isinstance(event, Text):
                    incoming.take(event, 0.0)
                elif isinstance(event, Done):
                    self._keep(incoming, event.answer)
        except KvchatError:
            self._keep(incoming, incoming.cancelled())

    def _take_back(self, incoming: Incoming) -> None:
        """Undo what asking has changed."""
        self._tip = incoming.back_to
        if incoming.is_new:
            self._tree.remove(incoming.exchange.id)
            self._journal.take_back(self.path, incoming.exchange.id)
        else:
            self._tree.put(incoming.exchange)
            self._journal.move(self.path)
            self._journal.answer(self._tree.path(incoming.exchange.id))

    def _learn_tokenizer(self) -> None:
        """Ask for it if answers have ids of several."""
        if not self.tokenizer and any(exchange.encoded for exchange in self.path):
            self.tokenizer = self.backend.info().tokenizer

    def _notices(self) -> Iterator[Event]:
        return map(Notice, self._journal.take_notices())
