"""Blocks packed without loss, each by itself: exponents apart from mantissas, and entropy-coded; knows no files and no torch.

A number's upper 16 bits are cut into two bytes: bits 7 to 14, which are the exponent of a bfloat16 or a float32, and the sign
with the seven bits below the exponent. The exponents of KV are much alike, and a Huffman code takes three bits for one;
what is below them is noise, and stays as it is. So does the lower half of a float32. (DFloat11 and ZipNN do so with weights.)
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from kvchat.cache.block import ELEMENT_BYTES, KVLayout
from kvchat.cache.entry import EntryError

Bytes = npt.NDArray[np.uint8]

_ALIGNED_BYTES = 8
# The fewest matches that zstandard can be made to look for: repeats in noise save nothing and halve the speed of decoding.
_HUFFMAN = zstandard.ZstdCompressionParameters(
    window_log=17,
    hash_log=6,
    chain_log=6,
    search_log=1,
    min_match=7,
    target_length=0,
    strategy=zstandard.STRATEGY_FAST,
)
_MOST_WINDOW_BYTES = 2**27
_SIGN_AND_LOW = np.int16(0x807F - 0x10000)


class Section(NamedTuple):
    """Bytes of a block that hold numbers of one size, 2 or 4 bytes each."""

    num_bytes: int
    item_bytes: int

    @property
    def plane_bytes(self) -> tuple[int, ...]:
        """The size of each plane that it is cut into."""
        count = self.num_bytes // self.item_bytes
        return (count, count) if self.item_bytes == 2 else (count, count, 2 * count)


class _Room(threading.local):
    """Memory that one thread unpacks in: new memory for each block took a third of the time."""

    def __init__(self) -> None:
        self._rooms: dict[str, npt.NDArray[np.int16]] = {}
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES)

    def numbers(self, name: str, count: int) -> npt.NDArray[np.int16]:
        """Room for so many numbers of 16 bits, the same for the same name."""
        if self._rooms.setdefault(name, np.empty(0, np.int16)).size < count:
            self._rooms[name] = np.empty(count, np.int16)
        return self._rooms[name][:count]


class Packing:
    """How blocks of one size are packed: the sizes of all planes of all sections, u32 each, and then the planes.

    A plane that an entropy code makes smaller is a zstandard frame; one of its full size is as it was. All begin at multiples
    of 8 bytes, as the sizes do. Safe for threads.
    """

    def __init__(self, sections: Sequence[Section]) -> None:
        self._room = _Room()
        self._sections = tuple(sections)
        self._plane_bytes = [size for section in sections for size in section.plane_bytes]
        self._sizes = struct.Struct(f"<{len(self._plane_bytes)}I")
        self.num_bytes = sum(section.num_bytes for section in sections)
        """Bytes of a block before it is packed."""
        self.most_bytes = sum(map(_aligned, (self._sizes.size, *self._plane_bytes)))
        """What a packed block takes at most."""

    def pack(self, block: memoryview) -> bytes:
        """A block of `num_bytes`, packed."""
        compressor = zstandard.ZstdCompressor(compression_params=_HUFFMAN)
        coded: list[bytes] = []
        at = 0
        for section in self._sections:
            numbers = np.frombuffer(block[at : at + section.num_bytes], np.uint8)
            planes = [plane.tobytes() for plane in _cut(numbers, section.item_bytes)]
            # Of two that are equally long the plane itself: by its full size it is known as such.
            coded += [min(plane, compressor.compress(plane), key=len) for plane in planes]
            at += section.num_bytes
        parts = self._sizes.pack(*map(len, coded)), *coded
        return b"".join(part.ljust(_aligned(len(part)), b"\0") for part in parts)

    def unpack(self, packed: Sequence[memoryview], into: memoryview) -> None:
        """Fill a buffer with some packed blocks, `num_bytes` each. Raises EntryError for what `pack` did not make.

        No more memory is taken than blocks have, whatever the bytes say.
        """
        whole = np.frombuffer(into, np.uint8)[: len(packed) * self.num_bytes]
        coded = [self._coded(block) for block in packed]
        if len(self._sections) == 1:  # of all blocks at once: calls for each took a third of the time
            self._fill(self._sections[0], coded, whole)
            return
        for number, planes in enumerate(coded):
            at, first = number * self.num_bytes, 0
            for section in self._sections:
                last = first + len(section.plane_bytes)
                self._fill(section, [planes[first:last]], whole[at : at + section.num_bytes])
                at, first = at + section.num_bytes, last

    def _fill(self, section: Section, coded: Sequence[Sequence[memoryview]], numbers: Bytes) -> None:
        """Fill some equal sections that lie one after the other, each from its own planes. Raises EntryError."""
        count = section.plane_bytes[0]
        room = self._room
        upper = numbers.view("<i2") if section.item_bytes == 2 else room.numbers("upper", len(coded) * count)
        shifted = room.numbers("shifted", len(coded) * count)
        scratch = room.numbers("plane", -(-count // 2)).view(np.uint8)[:count]
        decompressor = room.decompressor
        for at, (exponents, others, *_) in enumerate(coded):
            mine = slice(at * count, (at + 1) * count)
            np.copyto(shifted[mine], _plane(exponents, scratch, decompressor))
            np.copyto(
                upper[mine], _plane(others, scratch, decompressor).view(np.int8)
            )  # the sign fills the rest
        np.bitwise_and(upper, _SIGN_AND_LOW, out=upper)
        np.left_shift(shifted, 7, out=shifted)
        np.bitwise_or(upper, shifted, out=upper)
        if section.item_bytes == 4:
            lower = room.numbers("lower", count).view(np.uint8)
            whole = numbers.view("<u4")
            np.copyto(whole, upper.view(np.uint16))
            np.left_shift(whole, 16, out=whole)
            for at, planes in enumerate(coded):
                part = whole[at * count : (at + 1) * count]
                np.bitwise_or(part, _plane(planes[2], lower, decompressor).view("<u2"), out=part)

    def _coded(self, block: memoryview) -> list[memoryview]:
        """The planes of a packed block as they lie there. Raises EntryError."""
        if len(block) < self._sizes.size:
            raise EntryError("a packed block is truncated")
        sizes = self._sizes.unpack_from(block)
        begins = [*accumulate(map(_aligned, (self._sizes.size, *sizes)))]
        if begins.pop() != len(block):
            raise EntryError("a packed block has another size")
        return [block[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]


def block_packing(layout: KVLayout, block_bytes: int) -> Packing:
    """How full blocks of exact KV are packed."""
    return Packing([Section(block_bytes, ELEMENT_BYTES[layout.dtype])])


def snapshot_packing(layout: KVLayout, snapshot_bytes: int) -> Packing:
    """How snapshots are packed: the recurrent states, and the KV behind the last full block."""
    return Packing(list(_snapshot_sections(layout, snapshot_bytes)))


def _snapshot_sections(layout: KVLayout, snapshot_bytes: int) -> Iterator[Section]:
    sizes = [(state.room_bytes, ELEMENT_BYTES[state.dtype]) for state in layout.states]
    rest_bytes = snapshot_bytes - sum(num_bytes for num_bytes, _ in sizes)
    for item_bytes, equal in groupby(
        [*sizes, (rest_bytes, ELEMENT_BYTES[layout.dtype])], lambda size: size[1]
    ):
        yield Section(sum(num_bytes for num_bytes, _ in equal), item_bytes)


def _cut(numbers: Bytes, item_bytes: int) -> list[npt.NDArray[Any]]:
    """A section's planes."""
    halves = numbers.view("<u2")
    upper = halves[item_bytes // 2 - 1 :: item_bytes // 2]
    exponents = (upper >> 7).astype(np.uint8)
    others = (upper >> 8 & 0x80 | upper & 0x7F).astype(np.uint8)
    return [exponents, others] if item_bytes == 2 else [exponents, others, np.ascontiguousarray(halves[::2])]


def _plane(coded: memoryview, into: Bytes, decompressor: zstandard.ZstdDecompressor) -> Bytes:
    """A plane, as it lies there or unpacked into a buffer of its size. Raises EntryError."""
    if len(coded) == into.size:
        return np.frombuffer(coded, np.uint8)
    try:
        if zstandard.frame_content_size(coded) != into.size:  # a frame could ask for any amount of memory
            raise EntryError("a packed block has another size")
        # Into memory that is there: new memory for each plane took a quarter of the time.
        reader = decompressor.stream_reader(coded, read_size=len(coded))
        if reader.readinto(into.data) != into.size or reader.read(1):
            raise EntryError("a packed block has another size")
    except zstandard.ZstdError as error:
        raise EntryError("a packed block can't be unpacked") from error
    return into


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
