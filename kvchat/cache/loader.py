"""Filling the arena and the states from a match, token-exact, and how fast that goes; finds nothing, stores nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvchat.cache.codec import allocate
from kvchat.cache.index import Piece
from kvchat.cache.match import FoundSnapshot, Loaded, Match
from kvchat.cache.pool import spans
from kvchat.cache.tiers import Tiers

if TYPE_CHECKING:
    import torch

SCRATCH_BYTES = 4 * 2**20


class Rate:
    """A smoothed rate in bytes a second, from what was measured; `guess` until then."""

    def __init__(self, guess: float) -> None:
        self.bytes_per_s = guess
        self._is_guess = True

    def measure(self, num_bytes: int, seconds: float) -> None:
        """Take in that so many bytes took so long."""
        if num_bytes == 0 or seconds <= 0:
            return
        now = num_bytes / seconds
        self.bytes_per_s = now if self._is_guess else 0.7 * self.bytes_per_s + 0.3 * now
        self._is_guess = False


class Loader:
    """Decodes runs, files and snapshots into arena planes and states. For one thread at a time."""

    def __init__(self, tiers: Tiers) -> None:
        self._codec = tiers.codec
        self._snapshot_codec = tiers.snapshot_codec
        self._block_size = tiers.settings.block_size
        self._disk = tiers.disk
        self._scratch: torch.Tensor | None = None
        self._ram_rate = Rate(2e9)
        self._disk_rate = Rate(5e8)

    def estimate_s(self, match: Match, start: int, end: int) -> float:
        """Seconds for the tokens [start, end) of a match and its snapshot, from the rates measured so far."""
        snapshot_s = 0.0
        if match.snapshot:
            rate = self._ram_rate if match.snapshot.block else self._disk_rate
            snapshot_s = self._snapshot_codec.num_bytes / rate.bytes_per_s
        end = min(end, match.block_tokens)
        in_ram = max(0, min(end, match.ram_tokens) - start)
        on_disk = max(0, end - max(start, match.ram_tokens))
        token_bytes = self._codec.block_bytes / self._block_size
        blocks_s = token_bytes * (in_ram / self._ram_rate.bytes_per_s + on_disk / self._disk_rate.bytes_per_s)
        return blocks_s + snapshot_s

    def load(self, match: Match, planes: Sequence[torch.Tensor], start: int, end: int) -> Loaded:
        """Fill the tokens [start, end), as far as they are stored and prove to be right."""
        began = time.perf_counter()
        end = max(start, min(end, match.block_tokens))
        ram_end = self._load_ram(match, planes, start, end)
        loaded_ram = time.perf_counter()
        disk_end = self._load_disk(match, planes, ram_end, end)
        loaded_all = time.perf_counter()
        token_bytes = self._codec.block_bytes // self._block_size
        self._ram_rate.measure((ram_end - start) * token_bytes, loaded_ram - began)
        self._disk_rate.measure((disk_end - ram_end) * token_bytes, loaded_all - loaded_ram)
        return Loaded(disk_end, ram_end - start, disk_end - ram_end, loaded_all - began)

    def load_snapshot(
        self, match: Match, planes: Sequence[torch.Tensor], states: Sequence[torch.Tensor], blocks: Loaded
    ) -> Loaded:
        """Fill the states, and the arena behind the blocks, which `load` has brought in; `end` is 0 if that failed."""
        found = match.snapshot
        assert found is not None
        began = time.perf_counter()
        buffer = self._snapshot_bytes(found) if blocks.end >= match.block_tokens else None
        if buffer is None:
            return Loaded(0, 0, 0, blocks.seconds + time.perf_counter() - began)
        rest = range(match.block_tokens, found.num_tokens)
        self._snapshot_codec.decode(buffer, states, planes, rest)
        seconds = time.perf_counter() - began
        rate = self._ram_rate if found.block else self._disk_rate
        rate.measure(buffer.nbytes, seconds)
        return Loaded(found.num_tokens, blocks.ram, blocks.disk, blocks.seconds + seconds)

    def _snapshot_bytes(self, found: FoundSnapshot) -> torch.Tensor | None:
        """A snapshot's bytes, verified; None when they can't be used."""
        if found.block:
            return found.block.run.buffer
        assert found.piece is not None and self._disk is not None
        buffer = allocate(self._snapshot_codec.num_bytes)
        with self._disk.open(found.piece) as reader:
            return buffer if reader.read(found.piece.start, 1, buffer.numpy().data) else None

    def _load_ram(self, match: Match, planes: Sequence[torch.Tensor], start: int, end: int) -> int:
        at, end = start, min(end, match.ram_tokens)
        for run, num_blocks in spans(match.tail):
            base = run.start * self._block_size
            stop = min(end, base + num_blocks * self._block_size)
            if at < stop:
                self._codec.decode(run.buffer, planes, at, first=at - base, end=stop - base)
                at = stop
        return at

    def _load_disk(self, match: Match, planes: Sequence[torch.Tensor], start: int, end: int) -> int:
        at = start
        for piece in match.pieces:
            stop = min(end, piece.end * self._block_size)
            if at < stop:
                at = self._load_piece(piece, planes, at, stop)
                if at < stop:
                    break
        return at

    def _load_piece(self, piece: Piece, planes: Sequence[torch.Tensor], at: int, stop: int) -> int:
        """Fill [at, stop) from one file, some blocks at a time, so that they stay in the CPU's caches.

        Returns how far that went. Nothing reaches the arena before its checksum is verified.
        """
        assert self._disk is not None
        block_bytes = self._codec.block_bytes
        if self._scratch is None:
            self._scratch = allocate(max(1, SCRATCH_BYTES // block_bytes) * block_bytes)
        most = self._scratch.nbytes // block_bytes
        with self._disk.open(piece) as reader:
            while at < stop:
                block = at // self._block_size
                num_blocks = min(most, -(-stop // self._block_size) - block)
                buffer = self._scratch[: num_blocks * block_bytes]
                if not reader.read(block, num_blocks, buffer.numpy().data):
                    break
                base = block * self._block_size
                end = min(stop, base + num_blocks * self._block_size)
                self._codec.decode(buffer, planes, at, first=at - base, end=end - base)
                at = end
        return at
