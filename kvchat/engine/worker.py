"""The one thread that owns the model: it loads, then runs jobs; anything can be cancelled from outside.

Jobs of one owner run in order. Those of several run at once where the thing knows how, see `Rounds`, and else take turns.
What is done while nobody waits gives way: it ends as soon as a job is queued, unless that job only looks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from kvchat.engine.job import Job, JobKind, Stream
from kvchat.engine.request import Wanting
from kvchat.engine.rounds import Company, Rounds
from kvchat.engine.turns import Turns
from kvchat.errors import EngineDiedError, PassingError

__all__ = ["JobKind", "Stream", "Worker"]

T = TypeVar("T")
"""What the worker loads and owns."""
E = TypeVar("E")
"""What a job yields."""
REST_S = 0.05
"""How long nothing may have been asked for behind an answer before something begins that nobody waits for: a program's next
question comes at once, and would find the engine within a forward."""


class Worker(Generic[T]):
    """Loads a thing in a thread of its own and lets jobs use it there; several at once where they have a `company`.

    When nobody waits for it yet, it may `settle` first; should that fail, the first job is to find out why.
    """

    def __init__(
        self,
        load: Callable[[], T],
        *,
        settle: Callable[[T], None] = lambda _: None,
        unload: Callable[[T], None] = lambda _: None,
        company: Callable[[T], Company | None] = lambda _: None,
    ) -> None:
        self._load = load
        self._company = company
        self._settle = settle
        self._unload = unload
        self._jobs: Turns[Job[T]] = Turns()
        self._rest_s = 0.0  # before anything begins that nobody waits for
        self._pending: set[Job[T]] = set()
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
        job: Callable[[T, Callable[[], bool]], Iterator[E | Wanting]],
        kind: JobKind = JobKind.WORK,
        owner: object = None,
    ) -> Stream[E]:
        """Queue `job(thing, is_cancelled)` for the worker's thread; yields what it yields, raises what it raises.

        It can be cancelled from now on. Closing the stream cancels it, and waits until it has let go of the model.
        Raises EngineDiedError once closed.
        """
        task: Job[T] = Job(job, kind, owner)
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

    def is_waiting(self, owner: object) -> bool:
        """Whether something that `owner` asked for waits until others' work is done."""
        with self._lock:
            mine = [task for task in self._pending if task.owner is owner and task.kind is JobKind.WORK]
            return self._thing is not None and bool(mine) and not any(task.has_begun for task in mine)

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
        self._try_to_load()
        self._answered.set()
        if self._thing is not None and not self._jobs.is_waiting:
            with suppress(Exception):
                self._settle(self._thing)
        self._serve(Rounds(self._company(self._thing) if self._thing is not None else None))
        if self._thing is not None:
            self._unload(self._thing)

    def _try_to_load(self) -> None:
        try:
            self._thing, self._failure = self._load(), None
        except BaseException as error:  # handed to whoever asks for the thing
            self._failure = error

    def _serve(self, rounds: Rounds[T]) -> None:
        """Run what is to be run until there never will be any more."""
        while True:
            while rounds.has_room and (task := self._next(rounds)) is not None:
                if not self._begin(task):
                    continue
                if task.kind is JobKind.IDLE:
                    self._run_idle(task)
                else:
                    rounds.add(task)
            if not rounds.owners:
                return
            for ended in rounds.go():
                self._done(ended)

    def _next(self, rounds: Rounds[T]) -> Job[T] | None:
        """What begins next; waits for it where nothing runs. Nobody's second job begins before the first has ended."""
        owners = rounds.owners
        return self._jobs.next(busy=owners, is_last=not owners, waits=not owners, rest_s=self._rest_s)

    def _begin(self, task: Job[T]) -> bool:
        if not task.begin():
            self._done(task)
            return False
        task.steps = self._steps(task)
        return True

    def _steps(self, task: Job[T]) -> Iterator[Any]:
        if isinstance(self._failure, PassingError) and not task.cancelled.is_set():
            self._try_to_load()
        if self._failure is not None:
            raise self._failure
        assert self._thing is not None
        yield from task.run(self._thing, task.cancelled.is_set)

    def _run_idle(self, idle: Job[T]) -> None:
        """Run what nobody waits for, and looks between its steps; work has cancelled it before it was queued."""
        while idle.step():
            while not idle.cancelled.is_set():
                look = self._jobs.first(lambda one: one.kind is JobKind.LOOK)
                if look is None:
                    break
                if self._begin(look):
                    while look.step():
                        pass
                    self._done(look)
        self._done(idle)

    def _done(self, task: Job[T]) -> None:
        if task.kind is not JobKind.LOOK:
            self._rest_s = REST_S if task.kind is JobKind.WORK else 0.0
        with self._lock:
            self._pending.discard(task)


def _closed() -> EngineDiedError:
    return EngineDiedError("the engine was closed")
