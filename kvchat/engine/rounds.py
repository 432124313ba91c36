"""Jobs that run at once in one thread: what they want is computed together, and the rest in turns. Knows no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from kvchat.engine.job import Job, JobKind

T = TypeVar("T")


class Company(Protocol):
    """What computes for several jobs at once; `Batch` says what each means."""

    @property
    def most(self) -> int: ...

    @property
    def is_open(self) -> bool: ...

    def admit(self, num_answers: int) -> None: ...

    def compute(self) -> None: ...

    let_others_on: Callable[[], None]


class Rounds(Generic[T]):
    """In each round all that are wanting get what they want, and one of the others, in turn, does one step: an answer's
    next token never waits for more than that, nor for all of a long step, see `Company.let_others_on`. Without `company`
    there is one job at a time."""

    def __init__(self, company: Company | None = None) -> None:
        self._company = company
        self._running: list[Job[T]] = []  # who did a step of his own last stands last
        self._ended: list[Job[T]] = []  # in this round
        if company is not None:
            company.let_others_on = self._grant

    @property
    def owners(self) -> list[object]:
        """Whose jobs run."""
        return [job.owner for job in self._running]

    @property
    def has_room(self) -> bool:
        """Whether one more may run."""
        return len(self._running) < (self._company.most if self._company else 1)

    def add(self, job: Job[T]) -> None:
        """Let it run from the next round on; it has begun."""
        self._running.append(job)

    def go(self) -> list[Job[T]]:
        """One round; the jobs that have ended in it."""
        other = next((job for job in self._running if not job.is_wanting), None)
        self._grant()
        if other is not None:
            self._running.remove(other)
            self._running.append(other)
            if not other.step():
                self._end(other)
        ended, self._ended = self._ended, []
        return ended

    def _grant(self) -> None:
        """Let all that are wanting have what they want, and go on until they want something again."""
        wanting = [job for job in self._running if job.is_wanting]
        if self._company is not None:
            self._company.admit(sum(job.kind is JobKind.WORK for job in self._running))
            self._company.compute()
        for job in wanting:
            if not self._goes_on(job):
                self._end(job)

    def _end(self, job: Job[T]) -> None:
        self._running.remove(job)
        self._ended.append(job)

    def _goes_on(self, job: Job[T]) -> bool:
        """Let a job that has what it wanted tell it, and go on until it wants something again; False if it has ended.

        Once it is alone, it does a whole step each time: who comes next is not to wait for its end.
        """
        while job.step():
            if job.is_wanting or self._company is None or not self._company.is_open:
                return True
        return False
