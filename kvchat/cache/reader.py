"""Reading one open file of the disk tier, every block against its checksum; knows no folder and no arena."""

from __future__ import annotations

import os
from collections.abc import Callable

from kvchat.cache.entry import EntryError, EntryName, checksum
from kvchat.cache.index import Piece


class Reader:
    """One open file. After a failed read the file is condemned or known to be gone."""

    def __init__(
        self, piece: Piece, descriptor: int | None, condemn: Callable[[EntryName, Exception], None]
    ) -> None:
        """`descriptor` None is a file that can't be read; `condemn` is told of a bad one."""
        self._piece = piece
        self._descriptor = descriptor
        self._condemn = condemn

    def read(self, block: int, num_blocks: int, into: memoryview) -> bool:
        """Read `num_blocks` from the chain's block `block` on and verify them; a snapshot is one block. False when they can't be used."""
        if self._descriptor is None:
            return False
        header = self._piece.header
        first = block - header.start
        size = header.block_bytes
        assert first >= 0 and first + num_blocks <= header.num_blocks and into.nbytes == num_blocks * size
        try:
            if not self._fill(into, header.payload_offset + first * size):
                raise EntryError("it is truncated")
            for index in range(num_blocks):
                if checksum(into[index * size : (index + 1) * size]) != header.checksums[first + index]:
                    raise EntryError("a block's checksum is wrong")
        except (OSError, EntryError) as error:
            self._condemn(self._piece.name, error)
            return False
        return True

    def _fill(self, into: memoryview, offset: int) -> bool:
        assert self._descriptor is not None
        done = 0
        while done < into.nbytes:
            num_bytes = os.preadv(self._descriptor, [into[done:]], offset + done)
            if num_bytes == 0:
                return False
            done += num_bytes
        return True
