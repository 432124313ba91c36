"""What one rendering has used of processor and memory, and the bounds on both. Knows no Jinja but its namespaces."""

from __future__ import annotations

import resource
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2.utils import Namespace

SECONDS, SECONDS_PER_ITEM = 2.0, 0.02
"""The processor time that one rendering may take, and what every message adds; a usual one takes some microseconds."""
SECONDS_EACH_TIME = 0.1
"""Renderings share SECONDS: what one has taken of them comes back so slowly, a rendering at a time. A model is loaded
with some thirty, and a chat asks for some with each message."""
MAX_CHARACTERS = 4_000_000
"""How large one value may get beside what the program was given: characters and elements, what repeats counted again."""
MAX_GROWTH_BYTES = 192 << 20
"""How much the process may grow meanwhile."""
MAX_BITS = 4096
_ELEMENT = 8  # characters that an element of a list counts for, beside its own
_MAX_DEPTH = 64  # of lists in lists: C code that walks them has no such bound of its own
_WORK_BETWEEN_CHECKS = 256
_WORK_BETWEEN_MEMORY_CHECKS = 1 << 16  # operations, or kilobytes made
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS = (list, tuple, dict, set, frozenset, *_VIEWS)


class OverLimit(Exception):  # noqa: N818 - a verdict on the program, told in its own words
    """The program asks for more than it may have; the text says of what."""


class Meter:
    """Counts one rendering at a time; every method but `start` may raise OverLimit.

    `spend` is called for all that a program does, with the size of what it handles. No single operation on values
    within the bounds takes long, so that a look at the clock between operations is enough.
    """

    def __init__(self) -> None:
        self._shared_s, self._own_s, self._used_s = SECONDS, 0.0, 0.0
        self.start()

    def start(self, given: int = 0, items: int = 0) -> None:
        """Begin to count; the program was given so many messages or values, of `given` characters together."""
        left_s = self._shared_s - max(0.0, self._used_s - self._own_s)
        self._shared_s = min(SECONDS, max(0.0, left_s) + SECONDS_EACH_TIME)
        self._own_s, self._used_s = SECONDS_PER_ITEM * items, 0.0
        self._seconds = self._shared_s + self._own_s
        self.most = MAX_CHARACTERS + 2 * given
        self._work = 0
        self._next_check, self._next_memory_check = _WORK_BETWEEN_CHECKS, _WORK_BETWEEN_MEMORY_CHECKS
        self._begun_s = time.thread_time()
        self._begun_bytes: int | None = None
        self._weighed: dict[int, tuple[object, int, int]] = {}  # by id: the object itself keeps the id taken

    def spend(self, size: int = 0) -> None:
        """Count one operation on `size` characters or elements."""
        self._work += 1 + (size >> 10)
        if self._work >= self._next_check:
            self._check()

    def fit(self, size: int) -> None:
        """Refuse a value of this size before it is made."""
        if size > self.most:
            raise OverLimit("it makes a value that is too large")

    def made(self, value: Any) -> Any:
        """`value`, which an operation has just made, counted."""
        kind = type(value)
        if kind is str:
            size = len(value)
            self.fit(size)
            self.spend(size)
        elif kind is int:
            self.fit_bits(value.bit_length())
        elif value is not None and kind is not bool:
            self.spend(self.weight(value))
        return value

    def fit_bits(self, bits: int) -> None:
        """Refuse a whole number of so many bits."""
        if bits > MAX_BITS:
            raise OverLimit("it makes a number that is too large")

    def weight(self, value: object) -> int:
        """How large a value is when it is written out."""
        if isinstance(value, str):
            return len(value)
        if type(value) is Namespace:  # it changes after it was weighed
            raise OverLimit("it puts a namespace where a value belongs")
        return self._weigh(value)[0] if isinstance(value, _CONTAINERS) else 1

    def _weigh(self, value: Any) -> tuple[int, int]:
        """Weight and depth of a container: what stands in it twice counts twice."""
        known = self._weighed.get(id(value))
        if known is not None:
            return known[1:]
        self.spend(len(value) << 4)
        weight = depth = 1
        for item in chain.from_iterable(value.items()) if isinstance(value, dict) else value:
            if type(item) is str:
                weight += len(item) + _ELEMENT
            elif isinstance(item, _CONTAINERS):
                inner, below = self._weigh(item)
                weight += inner + _ELEMENT
                depth = max(depth, below + 1)
            else:
                weight += self.weight(item) + _ELEMENT
        self.fit(weight)
        if depth > _MAX_DEPTH:
            raise OverLimit("it nests lists too deeply")
        self._weighed[id(value)] = (value, weight, depth)
        return weight, depth

    def _check(self) -> None:
        self._next_check = self._work + _WORK_BETWEEN_CHECKS
        self._used_s = time.thread_time() - self._begun_s
        if self._used_s > self._seconds:
            raise OverLimit(f"it takes more than {self._seconds:.1f} seconds")
        if self._work < self._next_memory_check:
            return
        self._next_memory_check = self._work + _WORK_BETWEEN_MEMORY_CHECKS
        now = _resident_bytes()
        if self._begun_bytes is None:
            self._begun_bytes = now
        elif now - self._begun_bytes > MAX_GROWTH_BYTES:
            raise OverLimit("it takes too much memory")


def _resident_bytes() -> int:
    """What this process has in memory, or had at most where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
