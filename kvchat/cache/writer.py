"""The background writer: one thread that takes committed chains to the disk, in order; knows no files, no hashes."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvchat.cache.block import Chain
from kvchat.cache.disk import DiskTier

if TYPE_CHECKING:
    import torch

MAX_JOBS = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """Blocks [start, start + num_blocks) of a chain, encoded in `buffer`, which stays as it is until `done`."""

    start: int
    num_blocks: int
    buffer: torch.Tensor


@dataclass(frozen=True, slots=True)
class WriteJob:
    """Bring a chain to the disk, as far as its segments reach; then call `done`, on the writer's thread."""

    chain: Chain
    segments: tuple[Segment, ...]
    priority: int
    done: Callable[[], None]


class Writer:
    """Writes one job after the other, so parents come before children. Safe for threads."""

    def __init__(self, disk: DiskTier, block_bytes: int) -> None:
        self._disk = disk
        self._block_bytes = block_bytes
        self._jobs: deque[WriteJob] = deque()
        self._changed = threading.Condition()
        self._is_writing = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="kvchat-cache-writer", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be written."""
        return self._is_writing or bool(self._jobs)

    def submit(self, job: WriteJob) -> bool:
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
                self._write(job)
            except Exception:
                log.exception("a chain was not written")
            finally:
                with self._changed:
                    job.done()
                    self._is_writing = False
                    self._changed.notify_all()

    def _write(self, job: WriteJob) -> None:
        num_covered = self._disk.num_covered(job.chain)
        for segment in job.segments:
            end = segment.start + segment.num_blocks
            if end <= num_covered:
                continue
            if segment.start > num_covered:
                break  # its parent isn't there, and a chain without its root is dead weight
            payload = segment.buffer.numpy().data[: segment.num_blocks * self._block_bytes]
            if not self._disk.store(job.chain.prefix(end), segment.start, payload, priority=job.priority):
                break
            num_covered = end
        self._disk.touch(job.chain, job.priority)
