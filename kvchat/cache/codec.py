"""How KV is encoded at rest, raw or int8, and copied between the arena and runs; owns no memory, knows no snapshots.

A run's buffer is uint8 [num_blocks * block_bytes], block-major: any prefix of its blocks is a prefix of its bytes.
Copies go plane by plane over all blocks of a run, strided, so their number does not grow with the blocks.
The arena is a list of planes [heads, capacity, dim] in the layout's order and dtype, on any device.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from kvchat.cache.block import KVLayout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MAPPED_BYTES = 2**18

_SCALE_BYTES = 2


class Stretch(NamedTuple):
    """Tokens of a run that one strided copy moves: `num_tokens` from `offset` on in each of some equal blocks."""

    first_block: int
    num_blocks: int
    offset: int
    num_tokens: int


def stretches(start: int, end: int, block_size: int) -> Iterator[Stretch]:
    """The token range [start, end) of a run as at most three: a block's rest, whole blocks, a block's head."""
    while start < end:
        block, offset = divmod(start, block_size)
        num_whole = (end - start) // block_size if offset == 0 else 0
        num_tokens = min(block_size - offset, end - start)
        yield Stretch(block, max(num_whole, 1), offset, num_tokens)
        start += max(num_whole, 1) * num_tokens


class Codec(Protocol):
    """One encoding of KV at rest. `block_bytes` is the size of one encoded block."""

    name: str
    block_bytes: int

    def encode(self, planes: Sequence[torch.Tensor], start: int, buffer: torch.Tensor) -> None:
        """Fill a run's buffer with the arena's tokens from `start` on."""

    def decode(
        self, buffer: torch.Tensor, planes: Sequence[torch.Tensor], start: int, *, first: int, end: int
    ) -> None:
        """Write a run's tokens [first, end) into the arena from token `start` on."""


def make_codec(name: str, layout: KVLayout, block_size: int) -> Codec:
    """The codec called `name`, one of `raw` and `int8`."""
    codecs: dict[str, Callable[[KVLayout, int], Codec]] = {"raw": RawCodec, "int8": Int8Codec}
    return codecs[name](layout, block_size)


def allocate(num_bytes: int) -> torch.Tensor:
    """A buffer, uint8 [num_bytes], in the machine's memory.

    Large ones are mapped one by one, so that a freed one goes back to the system at once: from the C heap, runs of
    all sizes took a third more than their bytes.
    """
    if num_bytes < MAPPED_BYTES:
        return torch.empty(num_bytes, dtype=torch.uint8)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    return torch.frombuffer(mmap.mmap(-1, num_bytes, flags=flags), dtype=torch.uint8)


class RawCodec:
    """KV byte by byte as it lies in the arena: each block is all planes as [heads, block_size, dim]."""

    name = "raw"

    def __init__(self, layout: KVLayout, block_size: int) -> None:
        self.block_bytes = layout.bytes_per_token * block_size
        self._layout = layout
        self._block_size = block_size

    def encode(self, planes: Sequence[torch.Tensor], start: int, buffer: torch.Tensor) -> None:
        """Fill a run's buffer with the arena's tokens from `start` on."""
        num_blocks = buffer.numel() // self.block_bytes
        stretch = Stretch(0, num_blocks, 0, self._block_size)
        for plane, blocks in zip(planes, self._planes(buffer), strict=True):
            blocks.copy_(_arena_view(plane, start, stretch))

    def decode(
        self, buffer: torch.Tensor, planes: Sequence[torch.Tensor], start: int, *, first: int, end: int
    ) -> None:
        """Write a run's tokens [first, end) into the arena from token `start` on."""
        moved = list(stretches(first, end, self._block_size))
        for plane, blocks in zip(planes, self._planes(buffer), strict=True):
            for stretch in moved:
                at = start + stretch.first_block * self._block_size + stretch.offset - first
                _arena_view(plane, at, stretch).copy_(_run_view(blocks, stretch))

    def _planes(self, buffer: torch.Tensor) -> Iterator[torch.Tensor]:
        """Each plane of a run as a view [num_blocks, heads, block_size, dim]."""
        values = buffer.view(DTYPES[self._layout.dtype])
        by_block = self.block_bytes // values.itemsize
        num_blocks, offset = values.numel() // by_block, values.storage_offset()
        for heads, dim in self._layout.planes:
            by_head = self._block_size * dim
            yield values.as_strided(
                (num_blocks, heads, self._block_size, dim), (by_block, by_head, dim, 1), offset
            )
            offset += heads * by_head


class Int8Codec:
    """Symmetric int8 with a float16 scale per token and head; lossy, about half the size of a 16-bit raw block.

    A block is all planes' scales [heads, block_size], then all planes' values [heads, block_size, dim], padded to an
    even size. A value's error is at most half a scale and the scale's rounding; NaN becomes 0 and an infinity the
    largest finite value of its token and head, so that neither spoils its neighbours.
    """

    name = "int8"

    def __init__(self, layout: KVLayout, block_size: int) -> None:
        num_scales = sum(heads for heads, _ in layout.planes) * block_size
        num_values = sum(heads * dim for heads, dim in layout.planes) * block_size
        self.block_bytes = num_scales * _SCALE_BYTES + num_values + num_values % 2
        self._values_offset = num_scales * _SCALE_BYTES
        self._layout = layout
        self._block_size = block_size

    def encode(self, planes: Sequence[torch.Tensor], start: int, buffer: torch.Tensor) -> None:
        """Fill a run's buffer with the arena's tokens from `start` on."""
        stretch = Stretch(0, buffer.numel() // self.block_bytes, 0, self._block_size)
        buffer.view(-1, self.block_bytes)[:, -1] = 0  # the padding, where there is any
        for plane, (scales, values) in zip(planes, self._planes(buffer), strict=True):
            exact = _arena_view(plane, start, stretch).float()
            largest = exact.abs().amax(-1, keepdim=True)
            if not largest.isfinite().all():
                exact, largest = _finite(exact)
            scale = (largest / 127).clamp_(max=torch.finfo(torch.float16).max).half()
            steps_per_unit = torch.where(scale > 0, scale.float().reciprocal(), 0.0)
            scales.copy_(scale.squeeze(-1))
            values.copy_((exact * steps_per_unit).round_().clamp_(-127, 127))

    def decode(
        self, buffer: torch.Tensor, planes: Sequence[torch.Tensor], start: int, *, first: int, end: int
    ) -> None:
        """Write a run's tokens [first, end) into the arena from token `start` on."""
        for plane, (scales, values) in zip(planes, self._planes(buffer), strict=True):
            for stretch in stretches(first, end, self._block_size):
                at = start + stretch.first_block * self._block_size + stretch.offset - first
                scale = _run_view(scales.unsqueeze(-1), stretch).float()
                _arena_view(plane, at, stretch).copy_(_run_view(values, stretch).float().mul_(scale))

    def _planes(self, buffer: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each plane's scales [num_blocks, heads, block_size] and values [..., dim], as views."""
        blocks = buffer.view(-1, self.block_bytes)
        all_scales = blocks[:, : self._values_offset].view(torch.float16)
        all_values = blocks[:, self._values_offset :].view(torch.int8)
        scale_at = value_at = 0
        for heads, dim in self._layout.planes:
            num_scales = heads * self._block_size
            scales = all_scales[:, scale_at : scale_at + num_scales].view(-1, heads, self._block_size)
            values = all_values[:, value_at : value_at + num_scales * dim].view(
                -1, heads, self._block_size, dim
            )
            yield scales, values
            scale_at += num_scales
            value_at += num_scales * dim


def _finite(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values [..., dim] with NaN as 0 and infinities as the row's largest finite value; and that [..., 1]."""
    finite = torch.where(values.isfinite(), values, 0.0)
    largest = finite.abs().amax(-1, keepdim=True)
    return torch.where(values.isinf(), largest.copysign(values), finite), largest


def _arena_view(plane: torch.Tensor, start: int, stretch: Stretch) -> torch.Tensor:
    """The arena's tokens from `start` on, as [num_blocks, heads, num_tokens, dim]."""
    heads, capacity, dim = plane.shape
    by_head, by_token, by_dim = plane.stride()
    size = stretch.num_tokens
    assert start >= 0 and start + stretch.num_blocks * size <= capacity, "outside of the arena"
    # One step: a run has so many planes that slicing each took longer than copying it.
    return plane.as_strided(
        (stretch.num_blocks, heads, size, dim),
        (size * by_token, by_head, by_token, by_dim),
        plane.storage_offset() + start * by_token,
    )


def _run_view(blocks: torch.Tensor, stretch: Stretch) -> torch.Tensor:
    """A run's tokens, as [num_blocks, heads, num_tokens, dim]."""
    by_block, by_head, by_token, by_dim = blocks.stride()
    num_blocks, heads, block_size, dim = blocks.shape
    assert stretch.first_block + stretch.num_blocks <= num_blocks, "outside of the run"
    assert stretch.offset + stretch.num_tokens <= block_size, "outside of a block"
    return blocks.as_strided(
        (stretch.num_blocks, heads, stretch.num_tokens, dim),
        (by_block, by_head, by_token, by_dim),
        blocks.storage_offset() + stretch.first_block * by_block + stretch.offset * by_token,
    )
