"""Made-up traces of somebody who chats in a terminal, from assumptions that are written down here; no model, no text.

What is assumed, for want of a public trace of such chats:
- Conversations are begun on working days, between 8 and 23 o'clock, four a day on average.
- One has as many turns as a log-normal says (median 6, nine in ten below 40), at most 200.
- They come in sittings: behind a turn the next one follows within minutes (median 50 s), but with one chance in nine
  the person leaves, and is back after hours or days (log-normal, median 20 h), if there are turns left to come.
- A message has 35 tokens (median), one in twelve is pasted text of 1,500; an answer has 220, and takes 25 a second.
- One turn in fourteen is asked again from the same point, one in forty goes on from an earlier turn: a branch.
- Eight conversations in ten begin with a saved prompt (median 300 tokens), some much more often than others (Zipf);
  once in two weeks each of them is edited, and one prompt in five of those begun with is used that once only.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvchat.bench.traces import Request, Trace

DAY_S = 86400.0
MOST_TURNS = 200
_TOKENS_PER_S = 25.0
_NUM_PROMPTS = 30


@dataclass(slots=True)
class _Conversation:
    """A conversation that goes on: the tokens behind each of its turns, and how many are still to come."""

    num_left: int
    tips: list[tuple[tuple[int, ...], int]] = field(default_factory=list)  # (blocks, tokens) behind each turn


class _Person:
    """Draws everything from one seed, so that the same seed is the same trace."""

    def __init__(self, seed: int, block_size: int) -> None:
        self.random = random.Random(seed)
        self.block_size = block_size
        self.num_blocks = 0
        self._prompts: dict[tuple[int, int], tuple[tuple[int, ...], int]] = {}

    def lengthened(self, path: tuple[int, ...], num_tokens: int, added: int) -> tuple[tuple[int, ...], int]:
        """A path of full blocks with so many tokens behind it, which nobody has seen before."""
        num_full = (num_tokens + added) // self.block_size
        new = range(self.num_blocks, self.num_blocks + num_full - len(path))
        self.num_blocks += len(new)
        return (*path, *new), num_tokens + added

    def length(self, median: float, spread: float, most: int = 30_000) -> int:
        """A length in tokens, log-normal."""
        return min(most, max(1, round(self.random.lognormvariate(0, spread) * median)))

    def prompt(self, day: float) -> tuple[tuple[int, ...], int]:
        """What a conversation begun on that day starts with."""
        kind = self.random.random()
        if kind < 0.2:
            return (), 0
        if kind < 0.36:
            return self.lengthened((), 0, self.length(300, 1.0, 4000))
        weights = [1 / (rank + 1) for rank in range(_NUM_PROMPTS)]
        (number,) = self.random.choices(range(_NUM_PROMPTS), weights)
        key = number, int(day + number * 14 / _NUM_PROMPTS) // 14
        if key not in self._prompts:
            self._prompts[key] = self.lengthened((), 0, self.length(300, 1.0, 4000))
        return self._prompts[key]

    def message(self) -> int:
        """Tokens of one message."""
        return self.length(1500, 0.8) if self.random.random() < 1 / 12 else self.length(35, 1.0)


def made(*, days: int = 60, seed: int = 0, block_size: int = 16) -> Trace:
    """The chats of one person over so many days."""
    return Trace(block_size, tuple(sorted(_requests(days, _Person(seed, block_size)), key=_time)))


def _time(request: Request) -> float:
    return request.time_s


def _requests(days: int, person: _Person) -> Iterator[Request]:
    waiting = [(begun, number, _begun(begun, person)) for number, begun in enumerate(_begins(days, person))]
    heapq.heapify(waiting)
    number = len(waiting)
    while waiting:
        now, _, conversation = heapq.heappop(waiting)
        if now > days * DAY_S:
            continue
        request = _turn(now, conversation, person)
        yield request
        conversation.num_left -= 1
        if conversation.num_left > 0:
            number += 1
            heapq.heappush(waiting, (_next(now, request.output_tokens, person), number, conversation))


def _begins(days: int, person: _Person) -> Iterator[float]:
    for day in range(days):
        count = 0 if day % 7 >= 5 else round(person.random.gammavariate(4, 1))
        for _ in range(count):
            yield day * DAY_S + person.random.uniform(8, 23) * 3600


def _begun(now: float, person: _Person) -> _Conversation:
    num_turns = min(MOST_TURNS, max(1, round(person.random.lognormvariate(0, 1.45) * 6)))
    return _Conversation(num_turns, [person.prompt(now / DAY_S)])


def _turn(now: float, conversation: _Conversation, person: _Person) -> Request:
    """One message, behind the last turn or, on a branch, behind an earlier one; the answer is added to the tips."""
    tips, drawn = conversation.tips, person.random.random()
    at = len(tips) - 1
    if at > 1 and drawn < 1 / 14:
        at -= 1
    elif at > 1 and drawn < 1 / 14 + 1 / 40:
        at = person.random.randrange(1, at)
    asked, num_asked = person.lengthened(*tips[at], person.message())
    output_tokens = person.length(220, 0.9, 4000)
    tip = person.lengthened(asked, num_asked, output_tokens)
    tips.append(tip)
    return Request(now, num_asked, output_tokens, tip[0], len(asked))


def _next(now: float, output_tokens: int, person: _Person) -> float:
    answered = now + output_tokens / _TOKENS_PER_S
    if person.random.random() < 1 / 9:
        back = answered + person.random.lognormvariate(0, 1.3) * 20 * 3600
        hour = back % DAY_S / 3600
        return back if 8 <= hour <= 23 else back - back % DAY_S + person.random.uniform(8, 23) * 3600
    return answered + person.random.lognormvariate(0, 1.0) * 50
