"""A conversation as a tree of exchanges, in values. Knows no backend that answers, no storage, no terminal."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvchat.backends.base import Answer, FinishReason, Options, Role, Turn
from kvchat.chat.way import Way

TITLE_LENGTH = 60
"""Longest title, in characters."""


def new_id() -> str:
    """A short random name, twelve hex digits."""
    return secrets.token_hex(6)


def title_of(text: str) -> str:
    """What a conversation that begins with this message is called: its first line, cut to TITLE_LENGTH."""
    line = " ".join(next((line for line in text.splitlines() if line.strip()), "").split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"


def derived_seed(seed: int, *place: int) -> int:
    """The seed of one answer from the conversation's and from where the answer stands in it, 0 to 2^48 - 1."""
    named = " ".join(map(str, (seed, *place))).encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=6).digest())


def is_empty(answer: Answer) -> bool:
    """Whether an answer was cancelled before anything was generated; its message is then taken back."""
    said = answer.completion or answer.text or answer.reasoning
    return answer.finish_reason is FinishReason.CANCELLED and not said


def is_unfinished(answer: Answer) -> bool:
    """Whether an answer was stopped before its own end, by the user, a limit or a loop, so that it can go on."""
    return answer.finish_reason is not FinishReason.STOP


def joined(before: Answer, after: Answer) -> Answer:
    """An unfinished answer and what followed it as one; usage, timings and cache report are those of `after`.

    Without ids when those of one part are unknown or belong to another tokenizer, or when the end of the first part
    turned out to begin a stop string: the text is then the truth.
    """
    is_known = (
        before.completion
        and before.tokenizer == after.tokenizer
        and (after.completion or not after.text)
        and not after.retracted
    )
    return replace(
        after,
        text=before.text[: max(0, len(before.text) - after.retracted)] + after.text,
        reasoning=before.reasoning + after.reasoning,
        completion=before.completion + after.completion if is_known else (),
    )


@dataclass(frozen=True, slots=True)
class Exchange:
    """A node of the tree: what the user said and what came back; `answer` is None while it is being made.

    `options` and `model` are those that the answer is made with; `created` is in seconds since the epoch. `encoded`
    has the answer's ids by tokenizer, for those other than the one that it was generated with. One that `is_pinned` stays
    word for word in every prompt.

    A summary is an exchange as well, beside what was said: it stands for all up to its parent, and `follows` is the id of
    the summary before it, or empty. Without an answer it only leaves out. Of what was said `follows` is None.
    """

    id: str
    parent: str | None
    user: Turn
    answer: Answer | None = None
    options: Options = field(default_factory=Options)
    model: str = ""
    created: float = 0.0
    encoded: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    is_pinned: bool = False
    follows: str | None = None

    @property
    def said(self) -> str:
        """What is there of the answer, with its reasoning."""
        return self.answer.reasoning + self.answer.text if self.answer else ""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The messages of this exchange, as a backend takes them."""
        return (self.user,) if self.answer is None else (self.user, self.answer.turn())

    def turns_for(self, tokenizer: str) -> tuple[Turn, ...]:
        """The messages, with the answer's ids of this tokenizer where they are known."""
        if self.answer is None or tokenizer not in self.encoded:
            return self.turns
        ids = self.encoded[tokenizer]
        return self.user, Turn(Role.ASSISTANT, self.answer.text, self.answer.reasoning, ids, tokenizer)


@dataclass(frozen=True, slots=True)
class Preset:
    """A saved prompt that is in place: its name, and the sampling options that go with it."""

    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Branch:
    """One way through the tree, by its tip. `shared` of the exchanges on its `path` lie on the current one as well.

    `sessions` are the names (or ids) of the sessions whose tip it is; `text` is its last message.
    """

    tip: str
    text: str
    path: tuple[Exchange, ...]
    shared: int
    is_current: bool
    created: float
    sessions: tuple[str, ...] = ()

    @property
    def num_exchanges(self) -> int:
        """Exchanges from the root to the tip."""
        return len(self.path)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all answers of a session, in tokens; `cached_tokens + prefilled_tokens` were asked for.

    Of the cached ones `idle_tokens` or fewer had been computed ahead, while nobody waited; of these, `ahead_tokens` of
    prompts and answers for messages that were being typed, which took `ahead_s` and saved `ahead_saved_s` of waiting.
    """

    answers: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    completion_tokens: int = 0
    idle_tokens: int = 0
    ahead_tokens: int = 0
    ahead_used_tokens: int = 0
    ahead_s: float = 0.0
    ahead_saved_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        """Share of the prompts' tokens that was not computed again, 0 to 1."""
        asked = self.cached_tokens + self.prefilled_tokens
        return self.cached_tokens / asked if asked else 0.0

    def plus(self, answer: Answer) -> Totals:
        """The totals with one more answer."""
        usage, is_known = answer.usage, answer.cache.is_reported
        return Totals(
            self.answers + 1,
            self.cached_tokens + usage.cached_tokens,
            self.prefilled_tokens + (usage.prompt_tokens - usage.cached_tokens if is_known else 0),
            self.completion_tokens + usage.completion_tokens,
            self.idle_tokens + answer.timings.idle_n,
            self.ahead_tokens + answer.timings.ahead_n,
            self.ahead_used_tokens + answer.timings.ahead_used_n,
            self.ahead_s + answer.timings.ahead_ms / 1e3,
            self.ahead_saved_s + answer.timings.ahead_saved_ms / 1e3,
        )


class Tree:
    """All exchanges of a conversation by id; a tip is an id, or None before the first message."""

    def __init__(self, exchanges: Iterable[Exchange] = ()) -> None:
        self._exchanges: dict[str, Exchange] = {}
        self._way = Way(self._exchanges)
        self.learn(exchanges)

    def __getitem__(self, exchange_id: str) -> Exchange:
        return self._exchanges[exchange_id]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._exchanges))  # another thread may add one

    def __contains__(self, exchange_id: object) -> bool:
        return exchange_id in self._exchanges

    def put(self, exchange: Exchange) -> None:
        """Add an exchange, or replace the one with its id."""
        self._exchanges[exchange.id] = exchange
        self._way.replace(exchange)

    def learn(self, exchanges: Iterable[Exchange]) -> None:
        """Add those that are not known yet and that a root leads to: where one is missing, what followed it is lost."""
        waiting: dict[str, list[Exchange]] = {}
        for exchange in exchanges:
            if exchange.parent is not None and exchange.parent not in self:
                waiting.setdefault(exchange.parent, []).append(exchange)
                continue
            ready = [exchange]
            while ready:
                known = ready.pop()
                if known.id not in self:
                    self._exchanges[known.id] = known
                    ready.extend(waiting.pop(known.id, ()))

    def remove(self, exchange_id: str) -> None:
        """Forget an exchange that nothing follows."""
        assert not self.has_children(exchange_id)
        del self._exchanges[exchange_id]
        self._way.remove(exchange_id)

    @property
    def began(self) -> float | None:
        """When the first of all its messages was sent, in seconds since the epoch; None before.

        The first is the one that was added first: a clock may go back.
        """
        first = next(iter(list(self._exchanges.values())), None)  # whole, for another thread may add one
        return first.created if first else None

    def tries(self, exchange: Exchange) -> int:
        """How many times the same was said in the same place before."""
        before = 0
        for other in self._exchanges.values():
            if other.id == exchange.id:
                break
            before += other.parent == exchange.parent and other.user.text == exchange.user.text
        return before

    def variants(self, exchange_id: str) -> tuple[Exchange, ...]:
        """All exchanges in which the same was said in the same place, the oldest first."""
        own = self[exchange_id]
        return tuple(
            other
            for other in self._exchanges.values()
            if other.parent == own.parent and other.user.text == own.user.text
        )

    def has_children(self, exchange_id: str) -> bool:
        """Whether something was said after it."""
        return any(exchange.parent == exchange_id for exchange in self._exchanges.values())

    def path(self, tip: str | None) -> tuple[Exchange, ...]:
        """The exchanges from the root to the tip."""
        return self._way.to(tip)

    def branches(self, tip: str | None, sessions: Mapping[str, Sequence[str]]) -> tuple[Branch, ...]:
        """All branches, the oldest first: every leaf, and every tip in `sessions` (tip -> its sessions' names)."""
        said = [exchange for exchange in self._exchanges.values() if exchange.follows is None]
        parents = {exchange.parent for exchange in said}
        tips = [
            exchange
            for exchange in said
            if exchange.id not in parents or exchange.id in sessions or exchange.id == tip
        ]
        current = {exchange.id for exchange in self.path(tip)}
        return tuple(self._branch(exchange, tip, current, sessions) for exchange in tips)

    def _branch(
        self, leaf: Exchange, tip: str | None, current: set[str], sessions: Mapping[str, Sequence[str]]
    ) -> Branch:
        path = self.path(leaf.id)
        shared = sum(exchange.id in current for exchange in path)
        names = tuple(sessions.get(leaf.id, ()))
        return Branch(leaf.id, leaf.user.text, path, shared, leaf.id == tip, leaf.created, names)
