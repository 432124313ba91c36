"""Blocks on their way into files and out of them, packed where that pays; knows no names and no folder.

While what was read is copied into the arena, other threads read and unpack what comes next: reading, checksums and zstandard
all let other threads run.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from kvchat.cache.base import Stored
from kvchat.cache.entry import STATE_CODEC, EntryError, FolderMeta
from kvchat.cache.header import Header, read_blocks
from kvchat.cache.packing import block_packing, snapshot_packing
from kvchat.cache.stats import Rate

SCRATCH_BYTES = 4 * 2**20
"""So much is read at a time, so that it stays in the CPU's caches."""

SLOWER = 1.2
"""Packing pays as long as it makes restoring no slower than this many times: it makes room for more."""

_MOST_THREADS = 4

Buffer = npt.NDArray[Any]  # of uint8
Part = Callable[[], Stored]


class Transfer:
    """How the blocks of one folder's files are packed and read. Safe for threads."""

    def __init__(self, meta: FolderMeta) -> None:
        self._blocks = block_packing(meta.layout, meta.block_bytes)
        self._snapshots = snapshot_packing(meta.layout, meta.snapshot_bytes)
        self._num_threads = min(_MOST_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="kvchat-cache-reader")
        self._reading, self._unpacking, self._taking = Rate(5e8), Rate(2e9), Rate(2e9)
        self._share = 0.85

    def pays(self) -> bool:
        """Whether restoring what is packed takes about as long as what is not, or less.

        From what was measured: how quickly this disk is read, blocks are unpacked, and taken; until then from guesses
        that suit a disk. What is packed is read ahead, so all threads share the work, but one alone takes it.
        """
        rates = self._reading, self._unpacking, self._taking
        read_s, unpack_s, take_s = (1 / rate.bytes_per_s for rate in rates)
        packed_s = max(take_s, (self._share * read_s + unpack_s + take_s) / self._num_threads)
        return packed_s <= SLOWER * (read_s + take_s)

    def pack(self, blocks: Sequence[memoryview], *, is_state: bool) -> list[memoryview]:
        """Each of some blocks packed, or a snapshot."""
        packing = self._snapshots if is_state else self._blocks
        packed = [memoryview(packing.pack(block)) for block in blocks]
        self._share = sum(map(len, packed)) / (len(packed) * packing.num_bytes)
        return packed

    def read(self, descriptor: int, header: Header, start: int, low: int, high: int) -> Iterator[Stored]:
        """Blocks [low, high) of an open file that begins with block `start`, in order, verified. Raises EntryError, OSError.

        The file has to stay open until this has ended or is closed.
        """
        most = max(1, SCRATCH_BYTES // header.block_bytes)
        is_ahead = header.is_packed and high - low > most
        buffers = [
            np.empty(min(most, high - low) * header.block_bytes, np.uint8)
            for _ in range(self._num_threads + 1 if is_ahead else 1)
        ]
        parts: list[Part] = []
        for number, begin in enumerate(range(low, high, most)):
            end = min(begin + most, high)
            into = buffers[number % len(buffers)][: (end - begin) * header.block_bytes]
            parts.append(partial(self._filled, descriptor, header, begin - start, Stored(begin, end, into)))
        for stored in self._ahead(parts) if is_ahead else (part() for part in parts):
            began = time.thread_time()
            yield stored
            self._taking.measure(stored.data.nbytes, time.thread_time() - began)

    def _ahead(self, parts: Sequence[Part]) -> Iterator[Stored]:
        """What other threads read: each may be one part further than there are threads."""
        coming: deque[Future[Stored]] = deque()
        try:
            for part in parts:
                coming.append(self._threads.submit(part))
                if len(coming) > self._num_threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            wait(coming)

    def _filled(self, descriptor: int, header: Header, first: int, stored: Stored) -> Stored:
        """A part with its blocks read, of which the first is number `first` in the file. Raises EntryError, OSError."""
        num_blocks = stored.end - stored.start
        sizes = header.sizes[first : first + num_blocks]
        packing = self._snapshots if header.codec == STATE_CODEC else self._blocks
        if header.is_packed and max(sizes) > packing.most_bytes:
            raise EntryError("a packed block is too long")
        lying: Buffer = np.empty(sum(sizes), np.uint8) if header.is_packed else stored.data
        began = time.perf_counter()
        blocks = read_blocks(descriptor, header, first, lying.data)
        self._reading.measure(lying.nbytes, time.perf_counter() - began)
        if header.is_packed:
            began = time.thread_time()
            packing.unpack(blocks, stored.data.data)
            self._unpacking.measure(stored.data.nbytes, time.thread_time() - began)
        return stored
