"""The background writer: one thread that brings to the slower tiers what was committed, in order; knows no files."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from kvchat.cache.base import Stored, Tier
from kvchat.cache.block import Chain

MAX_JOBS = 64
MAX_REFUSED = 256

Held = Callable[[int], Iterable[Stored]]
"""What is held of a chain from a block on, in order; what it gives may begin earlier."""

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """Something to do, and what to call when it is done, or never will be; both on the writer's thread."""

    work: Callable[[], object]
    done: Callable[[], object] = lambda: None


class Writer:
    """Does one job after the other, so parents come before children. Safe for threads."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        """Without tiers it takes no jobs, and has no thread."""
        self._tiers = tiers
        self._jobs: deque[Job] = deque()
        self._refused: dict[bytes, tuple[Chain, int]] = {}
        self._changed = threading.Condition()
        self._is_writing = False
        self._is_closed = not tiers
        self._thread = threading.Thread(target=self._run, name="kvchat-cache-writer", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether storing makes sense now."""
        return not self._is_closed and any(tier.is_writable for tier in self._tiers)

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be done."""
        return self._is_writing or bool(self._jobs)

    def num_held(self, chain: Chain) -> int:
        """How many blocks of a chain the tiers hold by now: the one of them that holds most."""
        return max((_num_held(tier, chain) for tier in self._tiers), default=0)

    def store(
        self, chain: Chain, held: Held, priority: int, done: Callable[[], object] = lambda: None
    ) -> bool:
        """Have a chain's blocks written that are `held`, which stay as they are until `done`, and all of it marked as used.

        False, and `done` is never called, when the queue is full or closed.
        """
        return self.submit(Job(partial(self._store, chain, held, priority), done))

    def submit(self, job: Job) -> bool:
        """Queue a job. False, and nothing of it is ever called, when the queue is full or closed."""
        with self._changed:
            if self._is_closed or len(self._jobs) >= MAX_JOBS:
                return False
            self._jobs.append(job)
            self._changed.notify_all()
            return True

    def take_refused(self) -> list[tuple[Chain, int]]:
        """The chains, with their priorities, that the system refused to write, once it may work again: to store them anew."""
        with self._changed:
            if not self._refused or not self.is_open:
                return []
            refused, self._refused = list(self._refused.values()), {}
            return refused

    def drain(self, timeout_s: float) -> bool:
        """Wait until all is done. False when the time was not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.is_busy, max(0.0, timeout_s))

    def close(self, timeout_s: float) -> bool:
        """Take no more jobs, drain, and end the thread, within the bound. False when something was left undone."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        is_done = self.drain(timeout_s)
        with self._changed:
            while self._jobs:
                self._jobs.popleft().done()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return is_done

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
                self._is_writing = True
            try:
                job.work()
            except Exception:
                log.exception("something was not written")
            finally:
                job.done()
                with self._changed:
                    self._is_writing = False
                    self._changed.notify_all()

    def _store(self, chain: Chain, held: Held, priority: int) -> None:
        """Bring to each tier what it does not have yet, parents first."""
        for tier in self._tiers:
            at = _num_held(tier, chain)
            for start, end, data in held(at):
                if start > at:
                    break
                if end > at:
                    if not tier.store(chain.prefix(end), start, data, priority=priority):
                        if not tier.is_writable:
                            self._remember(chain, priority)
                        break
                    at = end
            tier.use(chain, priority)

    def _remember(self, chain: Chain, priority: int) -> None:
        with self._changed:
            self._refused[chain.hashes[-1]] = chain, priority
            while len(self._refused) > MAX_REFUSED:
                del self._refused[next(iter(self._refused))]


def _num_held(tier: Tier, chain: Chain) -> int:
    pieces = tier.match(chain)
    return pieces[-1].end if pieces else 0
