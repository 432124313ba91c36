"""One thing to be done in the engine's thread, and the stream in which its reader gets what it yields. Runs nothing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from kvchat.engine.request import Wanting

T = TypeVar("T")
"""What the worker loads and owns."""
E = TypeVar("E")
"""What a job yields."""


class JobKind(Enum):
    """What a job does to one that runs while nobody waits.

    `WORK` ends it. `LOOK` leaves the thing as it is, and is run between two of its events. `IDLE` is such a job
    itself, and takes the place of its owner's one before.
    """

    WORK = auto()
    LOOK = auto()
    IDLE = auto()


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """Something to be run for an owner, and what its reader gets of it. `steps` is it as it runs; while it `is_wanting`
    it waits for what is computed for several at once."""

    run: Callable[[T, Callable[[], bool]], Iterator[Any]]
    kind: JobKind
    owner: object = None
    events: queue.SimpleQueue[tuple[str, Any]] = field(default_factory=queue.SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    has_begun: bool = False
    is_dropped: bool = False
    is_wanting: bool = False
    steps: Iterator[Any] = field(default_factory=lambda: iter(()))

    def replaces(self, other: Job[T]) -> bool:
        """Whether it is computed ahead for whom the other one was, and so more to the point."""
        return self.kind is JobKind.IDLE and self.owner is other.owner

    def begin(self) -> bool:
        """Let it run; False if it was dropped before, or comes too late for what it was to be ahead of."""
        if self.kind is JobKind.IDLE and self.cancelled.is_set():
            self.drop()
        with self.lock:
            self.has_begun = not self.is_dropped
            return self.has_begun

    def step(self) -> bool:
        """Go on to its next event, or until it is wanting; False once it has ended. What it raises its reader gets."""
        try:
            event = next(self.steps)
        except StopIteration:
            self.events.put(("end", None))
            return False
        except BaseException as error:
            self.events.put(("error", error))
            return False
        self.is_wanting = isinstance(event, Wanting)
        if not self.is_wanting:
            self.events.put(("event", event))
        return True

    def drop(self, error: BaseException | None = None) -> None:
        """Cancel it; one that has not begun never will, and whoever reads it gets the error, or its end."""
        self.cancelled.set()
        with self.lock:
            if self.has_begun or self.is_dropped:
                return
            self.is_dropped = True
        self.events.put(("error", error) if error else ("end", None))


class Stream(Iterator[E]):
    """What one job yields, in order; raises what it raises. `cancel` may be called from any thread."""

    def __init__(self, job: Job[Any]) -> None:
        self._job = job
        self._has_ended = False

    def __next__(self) -> E:
        if self._has_ended:
            raise StopIteration
        try:
            kind, value = self._job.events.get()
        except BaseException:  # Ctrl-C: nobody waits any more, and least of all for a model that loads
            self.cancel()
            raise
        if kind == "event":
            event: E = value
            return event
        self._has_ended = True
        if kind == "error":
            raise value
        raise StopIteration

    def cancel(self) -> None:
        """Let the job end soon; what it yields until then still comes."""
        self._job.cancelled.set()

    def close(self) -> None:
        """Cancel the job, and wait until it has let go of the model; one that waits for it is dropped."""
        self._job.drop()
        while not self._has_ended:
            self._has_ended = self._job.events.get()[0] != "event"

    def __del__(self) -> None:
        self._job.drop()  # as closing does, but nobody is there to wait

    @classmethod
    def of_nothing(cls) -> Stream[E]:
        """One that has ended."""
        job: Job[Any] = Job(lambda *_: iter(()), JobKind.LOOK)
        job.drop()
        return cls(job)
