"""The one thread that owns the model: it loads, then runs jobs in order; anything can be cancelled from outside.

What is done while nobody waits gives way: it ends as soon as a job is queued, unless that job only looks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Generic, TypeVar

T = TypeVar("T")
"""What the worker loads and owns."""
E = TypeVar("E")
"""What a job yields."""


class Manner(Enum):
    """What a job does to one that runs while nobody waits.

    `WORK` ends it. `LOOK` leaves the thing as it is, and is run between two of its events. `IDLE` is such a job
    itself, and takes the place of the one before.
    """

    WORK = auto()
    LOOK = auto()
    IDLE = auto()


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    run: Callable[[T, Callable[[], bool]], Iterator[Any]]
    manner: Manner
    events: queue.Queue[tuple[str, Any]] = field(default_factory=queue.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker(Generic[T]):
    """Loads a thing in a thread of its own and lets jobs use it there, one after the other.

    When nobody waits for it yet, it may `settle` first.
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
        self._jobs: queue.SimpleQueue[_Job[T] | None] = queue.SimpleQueue()
        self._pending: set[_Job[T]] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loaded = threading.Event()
        self._failure: BaseException | None = None
        self._thing: T | None = None

    def start(self) -> None:
        """Begin to load; does nothing when that has begun."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="kvchat-engine", daemon=True)
                self._thread.start()

    def wait(self) -> T:
        """The loaded thing, to be read only. Raises what loading raised."""
        self.start()
        self._loaded.wait()
        if self._failure is not None:
            raise self._failure
        assert self._thing is not None
        return self._thing

    @property
    def is_ready(self) -> bool:
        """Whether loading is over, well or not."""
        return self._loaded.is_set()

    def run(
        self, job: Callable[[T, Callable[[], bool]], Iterator[E]], manner: Manner = Manner.WORK
    ) -> Iterator[E]:
        """Queue `job(thing, is_cancelled)` for the worker's thread; yields what it yields, raises what it raises.

        It can be cancelled from now on. Closing the iterator cancels it, and waits until it has let go of the model.
        """
        self.start()
        task: _Job[T] = _Job(job, manner)
        with self._lock:
            for other in self._pending if manner is not Manner.LOOK else ():
                if other.manner is Manner.IDLE:
                    other.cancelled.set()
            self._pending.add(task)
        self._jobs.put(task)
        return self._follow(task)

    def _follow(self, task: _Job[T]) -> Iterator[Any]:
        kind, value = "event", None
        try:
            while True:
                kind, value = task.events.get()
                if kind != "event":
                    break
                yield value
        finally:
            task.cancelled.set()
            while kind == "event":
                kind, _ = task.events.get()
            with self._lock:
                self._pending.discard(task)
        if kind == "error":
            raise value

    def cancel(self) -> None:
        """Cancel every job that runs or waits."""
        with self._lock:
            for task in self._pending:
                task.cancelled.set()

    def close(self, timeout_s: float = 10.0) -> None:
        """Cancel everything and end the thread, after it has unloaded; waits at most `timeout_s`.

        A thing that is still loading is not waited for.
        """
        self.cancel()
        self._jobs.put(None)
        if self._thread is not None and self._loaded.is_set():
            self._thread.join(timeout_s)

    def _work(self) -> None:
        try:
            self._thing = self._load()
        except BaseException as error:  # handed to whoever asks for the thing
            self._failure = error
        self._loaded.set()
        if self._thing is not None and self._jobs.empty():
            self._settle(self._thing)
        while (task := self._jobs.get()) is not None:
            self._run_one(task)
        if self._thing is not None:
            self._unload(self._thing)

    def _run_one(self, task: _Job[T]) -> None:
        try:
            if self._failure is not None:
                raise self._failure
            assert self._thing is not None
            stream = task.run(self._thing, task.cancelled.is_set)
            for event in stream:
                task.events.put(("event", event))
                if task.manner is Manner.IDLE:
                    self._run_looks(task)
        except BaseException as error:  # handed to whoever reads the stream
            task.events.put(("error", error))
        else:
            task.events.put(("end", None))

    def _run_looks(self, idle: _Job[T]) -> None:
        """Run what came during an idle job; whatever more than looks has cancelled it before it was queued."""
        while not idle.cancelled.is_set():
            try:
                task = self._jobs.get_nowait()
            except queue.Empty:
                return
            if task is None:  # the end: the thread has to find it again
                self._jobs.put(None)
                return
            self._run_one(task)
