"""A matrix as the integer kernel reads it: multiplied as it is, or turned into floating numbers a part at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kvchat.models.weights.order import block_rows, blocks
from kvchat.models.weights.quantize import Plane

_NUMBERS_AT_ONCE = 1 << 18
"""Of a matrix that are turned into floating numbers: they stay in a core's cache from one step to the next."""
_WORD = torch.complex128
"""Moved as it is, 16 bytes at once: torch moves few bytes that lie side by side one after the other."""


class IntegerMatrix:
    """A matrix [rows, columns] of one plane of 4 bits, or of two whose scales are one."""

    __slots__ = ("_high", "columns", "group", "planes", "rows")

    def __init__(self, planes: Sequence[Plane]) -> None:
        self.planes = tuple((plane.packed, plane.scales) for plane in planes)
        packed, scales = self.planes[-1]
        self.rows, self.columns = packed.shape[0], 2 * packed.shape[1]
        self.group = self.columns // scales.shape[0]
        self._high = (
            8 * 17 if len(planes) > 1 else 8
        )  # what both planes subtract from their codes, in steps of the low

    @property
    def num_bytes(self) -> int:
        """Bytes that a product with one row reads."""
        return sum(packed.numel() + 2 * scales.numel() for packed, scales in self.planes)

    def product(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` bfloat16 [few, columns] -> [few, rows], the planes' products added in `dtype`."""
        packed, scales = self.planes[0]
        out: torch.Tensor = torch._weight_int4pack_mm_for_cpu(x, packed, self.group, scales).to(dtype)
        for packed, scales in self.planes[1:]:
            out += torch._weight_int4pack_mm_for_cpu(x, packed, self.group, scales)
        return out

    def values(self, start: int, end: int, out: torch.Tensor) -> torch.Tensor:
        """The rows from `start` to `end`, multiples of a block, written side by side: `out` [columns, end - start]."""
        width, group = block_rows(), self.group
        some = [blocks(packed)[start // width : end // width] for packed, _ in self.planes]
        step = max(1, _NUMBERS_AT_ONCE // (end - start) // group) * group
        for first in range(0, self.columns, step):
            last = min(first + step, self.columns)
            scale, zero = self._scale_and_zero(slice(first // group, last // group), slice(start, end))
            part = out[first:last] if out.dtype == torch.float32 else torch.empty(last - first, end - start)
            part.copy_(_codes([block[:, first:last] for block in some]))
            grouped = part.view(-1, group, end - start)
            torch.addcmul(zero[:, None], grouped, scale[:, None], out=grouped)
            if out.dtype != torch.float32:
                out[first:last].copy_(part)
        return out

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Some rows, float32 [indices, columns]."""
        width = block_rows()
        block, place = indices // width, indices % width
        some = [blocks(packed)[block, :, place % (width // 2)] for packed, _ in self.planes]
        codes = torch.where((place < width // 2)[:, None], _low(some), _high(some))
        scale, zero = self._scale_and_zero(slice(None), indices)
        values = codes.float().view(len(indices), -1, self.group) * scale.t()[..., None] + zero.t()[..., None]
        return values.flatten(1)

    def _scale_and_zero(self, groups: slice, rows: slice | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What codes, unsigned ones of both planes together, are multiplied by, and what is added, float32 each."""
        scale, zero = self.planes[-1][1][groups, rows].float().unbind(-1)
        return scale.contiguous(), zero - self._high * scale


def _codes(some: Sequence[torch.Tensor]) -> torch.Tensor:
    """Bytes of each plane [blocks, columns, half] -> the codes of both together, uint8 [columns, blocks * 2 * half]."""
    num_blocks, columns, half = some[0].shape
    codes = torch.empty(columns, num_blocks, 2, half, dtype=torch.uint8)
    words = codes.view(_WORD)
    words[:, :, 0].copy_(_low(some).view(_WORD).transpose(0, 1))
    words[:, :, 1].copy_(_high(some).view(_WORD).transpose(0, 1))
    return codes.view(columns, -1)


def _low(some: Sequence[torch.Tensor]) -> torch.Tensor:
    """The codes in the low halves of bytes of one plane, or of both together."""
    if len(some) == 1:
        return some[0] & 15
    return ((some[0] & 15) << 4) | (some[1] & 15)


def _high(some: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same of the high halves."""
    return some[0] >> 4 if len(some) == 1 else (some[0] & 240) | (some[1] >> 4)


class Buffer:
    """Memory in which matrices take turns to be floating numbers: fresh pages would cost as much as the arithmetic."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def take(self, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor, valid until another is taken."""
        size = math.prod(shape)
        if self._flat.numel() < size or self._flat.dtype != dtype:
            with torch.inference_mode(False):
                self._flat = torch.empty(size, dtype=dtype)
        return self._flat[:size].view(shape)
