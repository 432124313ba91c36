"""What waits for the engine's thread: in order for each owner, the owners in turns. Knows nothing of what waits."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A queue of queues: whoever asked for much waits longest, and nobody's second task goes before another's first.

    What is put in as `is_last` comes when nothing else waits. Safe for threads.
    """

    def __init__(self) -> None:
        self._waiting: tuple[OrderedDict[object, deque[T]], ...] = (OrderedDict(), OrderedDict())
        self._has_ended = False
        self._changed = threading.Condition()

    @property
    def is_waiting(self) -> bool:
        """Whether something is to be done, and be it to end."""
        with self._changed:
            return self._has_ended or any(self._waiting)

    def put(self, task: T, owner: object = None, *, is_last: bool = False) -> None:
        """Let a task wait behind its owner's others."""
        with self._changed:
            self._waiting[is_last].setdefault(owner, deque()).append(task)
            self._changed.notify()

    def next(
        self, *, busy: Collection[object] = (), is_last: bool = True, waits: bool = True, rest_s: float = 0.0
    ) -> T | None:
        """The task whose turn it is, of an owner who is not `busy`, and one for when nothing else waits only if it
        `is_last`, and nothing else came for `rest_s` seconds. It waits for one if it `waits`; None where there is none,
        and once that has ended."""
        with self._changed:
            rested_at = time.monotonic() + rest_s
            while True:
                rest = rested_at - time.monotonic()
                sorts = self._waiting if is_last and rest <= 0 else self._waiting[:1]
                free = ((owners, owner) for owners in sorts for owner in owners if owner not in busy)
                found = None if self._has_ended else next(free, None)
                if found or self._has_ended or not waits:
                    break
                self._changed.wait(rest if rest > 0 and self._waiting[1] else None)
            if found is None:
                return None
            owners, owner = found
            task = owners[owner].popleft()
            if owners[owner]:
                owners.move_to_end(owner)  # the others come first
            else:
                del owners[owner]
            return task

    def first(self, suits: Callable[[T], bool]) -> T | None:
        """Some owner's first task, taken out of turn, if it suits; never waits."""
        with self._changed:
            for owners in self._waiting:
                for owner, tasks in owners.items():
                    if suits(tasks[0]):
                        task = tasks.popleft()
                        if not tasks:
                            del owners[owner]
                        return task
            return None

    def end(self) -> None:
        """Nothing that waits, or is put in from now on, ever has its turn."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
