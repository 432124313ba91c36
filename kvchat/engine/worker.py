"""The one thread that owns the model: it loads, then runs jobs in order; anything can be cancelled from outside.

What is done while nobody waits gives way: it ends as soon as a job is queued, unless that job only looks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from kvchat.engine.turns import Turns
from kvchat.errors import EngineDiedError

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
class _Job(Generic[T]):
    run: Callable[[T, Callable[[], bool]], Iterator[Any]]
    kind: JobKind
    owner: object = None
    events: queue.SimpleQueue[tuple[str, Any]] = field(default_factory=queue.SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    has_begun: bool = False
    is_dropped: bool = False

    def replaces(self, other: _Job[T]) -> bool:
        """Whether it is computed ahead for whom the other one was, and so more to the point."""
        return self.kind is JobKind.IDLE and self.owner is other.owner

    def begin(self) -> bool:
        """Let it run; False if it was dropped before."""
        with self.lock:
            self.has_begun = not self.is_dropped
            return self.has_begun

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

    def __init__(self, job: _Job[Any]) -> None:
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
        job: _Job[Any] = _Job(lambda *_: iter(()), JobKind.LOOK)
        job.drop()
        return cls(job)


class Worker(Generic[T]):
    """Loads a thing in a thread of its own and lets jobs use it there, one after the other.

    When nobody waits for it yet, it may `settle` first; should that fail, the first job is to find out why.
    """

    def __init__(
        self,
        load: Callable[[], T],
        *,
        settle: Callable[[T], None] = lambda _: None,
        unload: Callable[[T], None] = lambda _: None,
    ) -> None:
        self._load = load
        self._settle = settle
        self._unload = unload
        self._jobs: Turns[_Job[T]] = Turns()
        self._pending: set[_Job[T]] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._answered = (
            threading.Event()
        )  # loading is over, well or not, or nobody is to wait for it any more
        self._failure: BaseException | None = None
        self._thing: T | None = None

    def start(self) -> None:
        """Begin to load; does nothing when that has begun. Raises EngineDiedError once closed."""
        with self._lock:
            self._start()

    def wait(self) -> T:
        """The loaded thing, to be read only. Raises what loading raised, and EngineDiedError once closed."""
        self.start()
        self._answered.wait()
        if self._is_closed:
            raise _closed()
        if self._failure is not None:
            raise self._failure
        assert self._thing is not None
        return self._thing

    def run(
        self,
        job: Callable[[T, Callable[[], bool]], Iterator[E]],
        kind: JobKind = JobKind.WORK,
        owner: object = None,
    ) -> Stream[E]:
        """Queue `job(thing, is_cancelled)` for the worker's thread; yields what it yields, raises what it raises.

        It can be cancelled from now on. Closing the stream cancels it, and waits until it has let go of the model.
        Raises EngineDiedError once closed.
        """
        task: _Job[T] = _Job(job, kind, owner)
        with self._lock:
            self._start()
            for other in self._pending:
                if other.kind is JobKind.IDLE and (kind is JobKind.WORK or task.replaces(other)):
                    other.cancelled.set()
            self._pending.add(task)
            self._jobs.put(task, owner, is_last=kind is JobKind.IDLE)
        return Stream(task)

    def cancel(self, owner: object) -> None:
        """Cancel what `owner` asked for, whether it runs or waits; what others asked for goes on."""
        with self._lock:
            for task in self._pending:
                if task.owner is owner:
                    task.cancelled.set()

    def close(self, timeout_s: float = 10.0) -> None:
        """Cancel everything and end the thread, after it has unloaded; waits at most `timeout_s`.

        A thing that is still loading is not waited for. Whoever waits, for it or for a job that has not begun, is told.
        """
        with self._lock:
            self._is_closed = True
            for task in self._pending:
                task.drop(_closed())
            self._jobs.end()
        is_loading = not self._answered.is_set()
        self._answered.set()
        if self._thread is not None and not is_loading:
            self._thread.join(timeout_s)

    def _start(self) -> None:
        if self._is_closed:
            raise _closed()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="kvchat-engine", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        try:
            self._thing = self._load()
        except BaseException as error:  # handed to whoever asks for the thing
            self._failure = error
        self._answered.set()
        if self._thing is not None and not self._jobs.is_waiting:
            with suppress(Exception):
                self._settle(self._thing)
        while (task := self._jobs.next()) is not None:
            self._run_one(task)
        if self._thing is not None:
            self._unload(self._thing)

    def _run_one(self, task: _Job[T]) -> None:
        if task.begin():
            task.events.put(self._outcome(task))
        with self._lock:
            self._pending.discard(task)

    def _outcome(self, task: _Job[T]) -> tuple[str, BaseException | None]:
        """Put what the job yields among its events; how it ended."""
        try:
            if self._failure is not None:
                raise self._failure
            assert self._thing is not None
            for event in task.run(self._thing, task.cancelled.is_set):
                task.events.put(("event", event))
                if task.kind is JobKind.IDLE:
                    self._run_looks(task)
        except BaseException as error:  # handed to whoever reads the stream
            return "error", error
        return "end", None

    def _run_looks(self, idle: _Job[T]) -> None:
        """Run the looks that came during an idle job; work has cancelled it before it was queued."""
        while not idle.cancelled.is_set():
            task = self._jobs.first(lambda one: one.kind is JobKind.LOOK)
            if task is None:
                return
            self._run_one(task)


def _closed() -> EngineDiedError:
    return EngineDiedError("the engine was closed")
