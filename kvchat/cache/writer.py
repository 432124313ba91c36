"""The background writer: one thread that takes what was committed to the disk, in order; knows no files, no hashes."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kvchat.cache.block import Chain, Point
from kvchat.cache.disk import DiskTier

if TYPE_CHECKING:
    import torch

MAX_JOBS = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """Blocks [start, start + num_blocks) of a chain, encoded in `buffer`, uint8, which stays as it is until `done`."""

    start: int
    num_blocks: int
    buffer: torch.Tensor


class Job(Protocol):
    """Something to be written."""

    @property
    def done(self) -> Callable[[], None]:
        """Called on the writer's thread when it is written, or never will be."""

    def write_to(self, disk: DiskTier) -> None:
        """Write it, and mark it as used now."""


@dataclass(frozen=True, slots=True)
class WriteJob:
    """Bring a chain to the disk, as far as its segments reach; then call `done`, on the writer's thread."""

    chain: Chain
    segments: tuple[Segment, ...]
    priority: int
    done: Callable[[], None]

    def write_to(self, disk: DiskTier) -> None:
        """Write the blocks that are not there yet, parents first."""
        num_covered = disk.num_covered(self.chain)
        for segment in self.segments:
            end = segment.start + segment.num_blocks
            if end <= num_covered:
                continue
            if segment.start > num_covered:
                break  # its parent isn't there, and a chain without its root is dead weight
            payload = segment.buffer.numpy().data
            if not disk.store(self.chain.prefix(end), segment.start, payload, priority=self.priority):
                break
            num_covered = end
        disk.touch(self.chain, self.priority)


@dataclass(frozen=True, slots=True)
class SnapshotJob:
    """Bring the snapshot at a point to the disk, behind its chain; without a `buffer` it is only marked as used now."""

    point: Point
    buffer: torch.Tensor | None
    priority: int
    done: Callable[[], None] = lambda: None

    def write_to(self, disk: DiskTier) -> None:
        """Write it if it is not there yet."""
        if self.buffer is not None:
            disk.store_snapshot(self.point, self.buffer.numpy().data, priority=self.priority)
        disk.touch(self.point.chain, self.priority, snapshot=self.point)


@dataclass(frozen=True, slots=True)
class NoteJob:
    """Note something beside the files."""

    content: bytes
    done: Callable[[], None] = lambda: None

    def write_to(self, disk: DiskTier) -> None:
        """Write it in place of what was there."""
        disk.keep_note(self.content)


class Writer:
    """Writes one job after the other, so parents come before children. Safe for threads."""

    def __init__(self, disk: DiskTier) -> None:
        self._disk = disk
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_writing = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="kvchat-cache-writer", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be written."""
        return self._is_writing or bool(self._jobs)

    def submit(self, job: Job) -> bool:
        """Queue a job. False, and `done` is never called, when the queue is full or closed."""
        with self._changed:
            if self._is_closed or len(self._jobs) >= MAX_JOBS:
                return False
            self._jobs.append(job)
            self._changed.notify_all()
            return True

    def drain(self, timeout_s: float) -> bool:
        """Wait until all is written. False when the time was not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.is_busy, max(0.0, timeout_s))

    def close(self, timeout_s: float) -> bool:
        """Take no more jobs, drain, and end the thread, within the bound. False when something was left unwritten."""
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
                job.write_to(self._disk)
            except Exception:
                log.exception("something was not written")
            finally:
                with self._changed:
                    job.done()
                    self._is_writing = False
                    self._changed.notify_all()
