"""The ids of earlier answers, found again by what a client sends back: bounded, in memory alone. Knows no text but that.

A client speaks text, and text that the model said may be cut into tokens otherwise than the model wrote it. Whoever sends
the same conversation again gets the very ids; a key is a hash of all of it, so that nobody gets what he did not send.
"""

from __future__ import annotations

import bisect
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from kvchat.backends.base import Role, Turn

MAX_ENTRIES = 8192
MAX_BYTES = 64 * 2**20
_ENTRY_BYTES = 400


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer as it was generated; `ids` are 32-bit numbers."""

    text: str
    reasoning: str
    ids: bytes
    tokenizer: str

    @classmethod
    def of(cls, turn: Turn) -> Kept:
        """What is kept of an answer that has its ids."""
        return cls(turn.text, turn.reasoning, array("I", turn.tokens or ()).tobytes(), turn.tokenizer or "")

    def turn(self) -> Turn:
        """The answer in a conversation."""
        return Turn(Role.ASSISTANT, self.text, self.reasoning, tuple(array("I", self.ids)), self.tokenizer)

    @property
    def num_bytes(self) -> int:
        """About what it takes."""
        return len(self.ids) + len(self.text) + len(self.reasoning) + _ENTRY_BYTES


class Memory:
    """Answers by their keys; what was not asked for longest goes first."""

    def __init__(self, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self.num_bytes = 0
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._asked: OrderedDict[bytes, None] = OrderedDict()

    def find(self, key: bytes) -> Kept | None:
        """The answer under a key."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, key: bytes, kept: Kept) -> None:
        """Remember an answer."""
        before = self._kept.pop(key, None)
        self._kept[key] = kept
        self.num_bytes += kept.num_bytes - (before.num_bytes if before else 0)
        while len(self._kept) > self._max_entries or self.num_bytes > self._max_bytes:
            self.num_bytes -= self._kept.popitem(last=False)[1].num_bytes

    def num_asked(self, keys: Sequence[bytes]) -> int:
        """How many of a conversation's messages, from the first on, were asked before."""
        return next((count for count in range(len(keys), 0, -1) if keys[count - 1] in self._asked), 0)

    def note(self, keys: Sequence[bytes]) -> None:
        """Remember that a conversation was asked."""
        for key in keys:
            self._asked[key] = None
            self._asked.move_to_end(key)
        while len(self._asked) > 4 * self._max_entries:
            self._asked.popitem(last=False)


class Beginnings:
    """Bare prompts with their answers, found again as the beginning of a longer prompt, of text or of ids."""

    def __init__(self, *, max_entries: int = 1024) -> None:
        self._max_entries = max_entries
        self._kept: OrderedDict[bytes, tuple[int, tuple[Turn, ...]]] = OrderedDict()
        self._lengths: list[int] = []

    def longest(self, prompt: str | Sequence[int]) -> tuple[int, tuple[Turn, ...]]:
        """How much of a prompt, in characters or ids, is known with the turns that it is; 0 and none if nothing is."""
        lengths = sorted(set(self._lengths[: bisect.bisect_right(self._lengths, len(prompt))]))
        found: tuple[int, tuple[Turn, ...]] = (0, ())
        for length, digest in zip(lengths, _digests(prompt, lengths), strict=True):
            if digest in self._kept:
                self._kept.move_to_end(digest)
                found = length, self._kept[digest][1]
        return found

    def keep(self, prompt: str | Sequence[int], turns: tuple[Turn, ...]) -> None:
        """Remember a prompt with its answer, and the turns that they are."""
        (digest,) = _digests(prompt, [len(prompt)])
        if digest not in self._kept:
            bisect.insort(self._lengths, len(prompt))
        self._kept[digest] = (len(prompt), turns)
        self._kept.move_to_end(digest)
        if len(self._kept) > self._max_entries:
            length = self._kept.popitem(last=False)[1][0]
            self._lengths.pop(bisect.bisect_left(self._lengths, length))


def _digests(prompt: str | Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """A hash of each beginning of a prompt, in one pass; `lengths` rise."""
    running = blake2b(b"text" if isinstance(prompt, str) else b"ids", digest_size=24)
    digests: list[bytes] = []
    at = 0
    for length in lengths:
        part = prompt[at:length]
        running.update(part.encode() if isinstance(part, str) else array("I", part).tobytes())
        digests.append(running.digest())
        at = length
    return digests
