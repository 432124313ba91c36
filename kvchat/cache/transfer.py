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

SCRATCH_BYTES = 2 * 2**20
"""So much is read at a time, so that it stays in the CPU's caches."""

SLOWER = 1.2
"""Packing pays as long as it makes restoring no slower than this many times: it makes room for more."""

_MOST_THREADS = 4
_LEAST_MEASURED = 2**20

Buffer = npt.NDArray[Any]  # of uint8
Part = Callable[["Place"], Stored | None]
"""Reads some blocks into a place; None when they can't be had."""


class Transfer:
    """How the blocks of one folder's files are packed and read. Safe for threads."""

    def __init__(self, meta: FolderMeta, *, may_pack: bool) -> None:
        """With `may_pack` what is stored is packed where that pays, by what was measured."""
        self._may_pack = may_pack
        self._blocks = block_packing(meta.layout, meta.block_bytes)
        self._snapshots = snapshot_packing(meta.layout, meta.snapshot_bytes)
        self._num_threads = min(_MOST_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="kvchat-cache-reader")
        # Until something was measured, what is usual of a disk.
        self._reading, self._unpacking, self._taking = Rate(5e8), Rate(2e9), Rate(2e9)
        self._share = 0.85

    def cut(self, data: memoryview, num_blocks: int, *, is_state: bool) -> tuple[list[memoryview], bool]:
        """Full blocks or a snapshot as they are to lie in a file, one by one, and whether they are packed."""
        size = data.nbytes // num_blocks
        blocks = [data[at : at + size] for at in range(0, data.nbytes, size)]
        if not self._may_pack or not self._pays():
            return blocks, False
        packing = self._snapshots if is_state else self._blocks
        packed = [memoryview(packing.pack(block)) for block in blocks]
        self._share = sum(map(len, packed)) / data.nbytes
        return packed, True

    def _pays(self) -> bool:
        rates = self._reading, self._unpacking, self._taking
        read_s, unpack_s, take_s = (1 / rate.bytes_per_s for rate in rates)
        return packing_pays(read_s, unpack_s, take_s, self._share, self._num_threads)

    def parts(self, low: int, high: int, block_bytes: int) -> Iterator[tuple[int, int]]:
        """The blocks [low, high) of a file, so many at a time that they stay in the CPU's caches."""
        most = max(1, SCRATCH_BYTES // max(1, block_bytes))  # of a model without KV 0
        return ((begin, min(begin + most, high)) for begin in range(low, high, most))

    def taken(self, parts: Sequence[Part], *, is_ahead: bool) -> Iterator[Stored | None]:
        """What each of some parts reads, in order; `is_ahead` has other threads read while the ones before are taken.

        What one reads is valid until the next one is asked for.
        """
        places = [Place() for _ in range(self._num_threads + 1 if is_ahead and len(parts) > 1 else 1)]
        jobs = [partial(part, places[number % len(places)]) for number, part in enumerate(parts)]
        for stored in self._ahead(jobs) if len(places) > 1 else (job() for job in jobs):
            began = time.thread_time()
            yield stored
            if stored:
                _measure(self._taking, stored.data, time.thread_time() - began)

    def _ahead(self, jobs: Sequence[Callable[[], Stored | None]]) -> Iterator[Stored | None]:
        """What other threads do: at any time one job more than there are threads is under way or taken."""
        coming: deque[Future[Stored | None]] = deque()
        try:
            for job in jobs:
                coming.append(self._threads.submit(job))
                if len(coming) > self._num_threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            wait(coming)

    def read(self, descriptor: int, header: Header, first: int, num_blocks: int, place: Place) -> Buffer:
        """An open file's blocks from its block `first` on, verified and unpacked. Raises EntryError, OSError."""
        packing = self._snapshots if header.codec == STATE_CODEC else self._blocks
        sizes = header.sizes[first : first + num_blocks]
        if header.is_packed and max(sizes) > packing.most_bytes:
            raise EntryError("a packed block is too long")
        whole = place.whole(num_blocks * header.block_bytes)
        into = place.lying(sum(sizes)) if header.is_packed else whole
        began = time.perf_counter()
        blocks = read_blocks(descriptor, header, first, into.data)
        _measure(self._reading, into, time.perf_counter() - began)
        if header.is_packed:
            began = time.thread_time()
            packing.unpack(blocks, whole.data)
            _measure(self._unpacking, whole, time.thread_time() - began)
        return whole


class Place:
    """Memory that one part after the other is read into: new memory for each took longer than reading."""

    def __init__(self) -> None:
        self._buffers = [np.empty(0, np.uint8)] * 2

    def whole(self, num_bytes: int) -> Buffer:
        """For blocks as the codec made them."""
        return self._room(0, num_bytes)

    def lying(self, num_bytes: int) -> Buffer:
        """For blocks as they lie in the file, packed."""
        return self._room(1, num_bytes)

    def _room(self, number: int, num_bytes: int) -> Buffer:
        if self._buffers[number].nbytes < num_bytes:
            self._buffers[number] = np.empty(num_bytes, np.uint8)
        return self._buffers[number][:num_bytes]


def packing_pays(read_s: float, unpack_s: float, take_s: float, share: float, num_threads: int) -> bool:
    """Whether restoring what is packed takes about as long as what is not, or less.

    In seconds a byte: reading it from this disk, unpacking it, and taking what was read; packed it is a `share` of its size.
    What is packed is read ahead, so all threads share the work, but one alone takes it.
    """
    packed_s = max(take_s, (share * read_s + unpack_s + take_s) / num_threads)
    return packed_s <= SLOWER * (read_s + take_s)


def _measure(rate: Rate, data: Buffer, seconds: float) -> None:
    """Take in a speed; of little data it would be the overhead's."""
    if data.nbytes >= _LEAST_MEASURED:
        rate.measure(data.nbytes, seconds)
