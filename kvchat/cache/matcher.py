"""Finding the longest stored prefix: blocks from the root on, and where these are not enough, a snapshot; copies nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kvchat.cache.block import TOKEN_BYTES, Chain, Point
from kvchat.cache.match import Ended, FoundSnapshot, Match
from kvchat.cache.pool import block_at
from kvchat.cache.tiers import Tiers


class Matcher:
    """Looks into the tiers and changes nothing there. Safe for threads."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers

    def match(self, tokens: Sequence[int]) -> Match:
        """The longest prefix of `tokens` that can be taken up again."""
        chain = self._tiers.chain(tokens)
        if not self._tiers.layout.states:
            return self.blocks(chain)
        return self._with_snapshot(np.asarray(tokens, dtype="<i4").tobytes(), chain)

    def blocks(self, chain: Chain) -> Match:
        """The longest stored prefix of a chain, in RAM and behind that on disk."""
        tiers, block_size = self._tiers, chain.block_size
        with tiers.lock:
            tail = tiers.pool.match(chain) if tiers.layout.planes else None
        num_in_ram = tail.depth if tail else 0
        pieces = tiers.disk.match(chain, num_in_ram) if tiers.disk and tiers.layout.planes else ()
        num_found = pieces[-1].end if pieces else num_in_ram
        ended = self._why_missing(chain.hashes[num_found]) if num_found < len(chain) else Ended.COMPLETE
        on_disk = (num_found - num_in_ram) * block_size
        return Match(chain, num_in_ram * block_size, on_disk, ended, tail, pieces)

    def _with_snapshot(self, ids: bytes, chain: Chain) -> Match:
        """The deepest snapshot whose blocks are stored, with these."""
        blocks = self.blocks(chain)
        has_planes = bool(self._tiers.layout.planes)
        deepest = blocks.block_tokens // chain.block_size if has_planes else len(chain)
        ended = self._why_missing(b"") if deepest == len(chain) else blocks.ended
        for start, rest, digest in self._candidates(ids, chain, deepest):
            known = Point(chain.prefix(start), rest, digest) if self._is_known(digest) else None
            if known and (found := self._prove(known, blocks)):
                ended = Ended.COMPLETE if found.num_tokens * TOKEN_BYTES == len(ids) else ended
                return self._joined(found, ended)
            why = self._why_missing(digest)
            ended = why if why in (Ended.EVICTED, Ended.CORRUPT) else ended
        return Match(chain.prefix(0), 0, 0, ended)

    def _candidates(self, ids: bytes, chain: Chain, deepest: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Where a snapshot may be, the deepest first: full blocks before it, the ids behind them, the digest."""
        tiers, block_bytes = self._tiers, chain.bytes_per_block
        starts = tiers.snapshot_starts | (tiers.disk.snapshot_starts() if tiers.disk else set())
        for start in sorted((start for start in starts if start <= deepest), reverse=True):
            parent = chain.hashes[start - 1] if start else tiers.root
            behind = ids[start * block_bytes : (start + 1) * block_bytes - TOKEN_BYTES]
            for size in range(len(behind), -1, -TOKEN_BYTES):
                rest = behind[:size]
                if start or rest:
                    yield start, rest, tiers.settings.hash_function(parent + rest)

    def _is_known(self, digest: bytes) -> bool:
        tiers = self._tiers
        return tiers.pool.is_known(digest) or bool(tiers.disk and tiers.disk.is_known(digest))

    def _prove(self, point: Point, blocks: Match) -> FoundSnapshot | None:
        """The snapshot at a point, in RAM or on disk, by its token ids."""
        tiers = self._tiers
        with tiers.lock:
            if not tiers.layout.planes:
                block = tiers.pool.find(None, point.digest, point.tokens)
            elif len(point.chain) <= (blocks.tail.depth if blocks.tail else 0):
                above = block_at(blocks.tail, len(point.chain))
                block = tiers.pool.find(above, point.digest, point.rest)
            else:
                block = None
        piece = tiers.disk.snapshot(point) if tiers.disk and not block else None
        return FoundSnapshot(point, block, piece) if block or piece else None

    def _joined(self, found: FoundSnapshot, ended: Ended) -> Match:
        """A snapshot with the blocks before it."""
        blocks = self.blocks(found.point.chain)
        held = (blocks.ram_tokens, blocks.disk_tokens)
        return Match(found.point.chain, *held, ended, blocks.tail, blocks.pieces, found)

    def _why_missing(self, digest: bytes) -> Ended:
        tiers = self._tiers
        if tiers.disk and tiers.disk.is_known_corrupt(digest):
            return Ended.CORRUPT
        if digest in tiers.evicted or (tiers.disk and tiers.disk.is_known_gone(digest)):
            return Ended.EVICTED
        is_empty = tiers.pool.num_blocks == 0 and not tiers.evicted
        return Ended.FIRST_USE if is_empty and (not tiers.disk or tiers.disk.is_empty) else Ended.NEW_TEXT
