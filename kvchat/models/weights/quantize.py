"""Integers for weights: 4 bits or twice 4 bits a weight with scales by the group, as a kernel of torch reads them.

A token's time on a CPU is the bytes of weights that it reads. The kernel `_weight_int4pack_mm_for_cpu` reads 4 bits a
weight and one scale and zero a group, both in bfloat16; weights of more bits are two such planes, the high and the low
nibble, of one scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvchat.models.weights import order
from kvchat.models.weights.mode import WeightsMode

GROUP = 32
"""Weights of one row that share a scale, where they have 4 bits or the integers are a GGUF's own."""
GROUPS_OF_8_BITS = (256, 128, 64, GROUP)
"""The same for 8 bits that are made here: the largest that divides a row. The scales of both planes are read with them."""
_ROWS_MULTIPLE = 64  # what the kernel takes in its fast form
_NIBBLE = 16


@dataclass(frozen=True, slots=True)
class Integers:
    """A matrix [rows, columns] as integers: weight = (codes - shift) * scale + minimum.

    `codes` uint8 [rows, columns]; `scale` and `minimum` float32 [rows, columns / group]; `shift` is 0 or a multiple
    of 8; `bits` of a code are 4 or at most 8.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor
    shift: int
    bits: int

    def values(self) -> torch.Tensor:
        """What they stand for, float32 [rows, columns]."""
        rows, groups = self.scale.shape
        codes = (self.codes.float() - self.shift).view(rows, groups, -1)
        return (codes * self.scale[..., None] + self.minimum[..., None]).flatten(1)


@dataclass(frozen=True, slots=True)
class Plane:
    """4 bits of each weight: weight = (code - 8) * scale + zero.

    `packed` is the kernel's own order of the codes, uint8 [rows, columns / 2]; `scales` holds scale and zero,
    bfloat16 [columns / group, rows, 2].
    """

    packed: torch.Tensor
    scales: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.packed.numel() + self.scales.numel() * self.scales.element_size()


def fits(rows: int, columns: int) -> bool:
    """Whether the kernel takes a matrix of this shape."""
    return rows % _ROWS_MULTIPLE == 0 and columns % GROUP == 0


def quantize(weight: torch.Tensor, mode: WeightsMode) -> Integers:
    """The integers nearest to a matrix, group by group: 8 bits around zero, or 4 bits between its ends."""
    rows, columns = weight.shape
    if mode is WeightsMode.INT8:
        groups = weight.float().view(rows, -1, _group_of_8_bits(columns))
        scale = _divisor(groups.abs().amax(-1) / 127)
        codes = (groups / scale[..., None]).round_().clamp_(-128, 127) + 128
        return Integers(codes.flatten(1).to(torch.uint8), scale, torch.zeros_like(scale), shift=128, bits=8)
    groups = weight.float().view(rows, -1, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = _divisor((high - low) / (_NIBBLE - 1))
    minimum = _rounded(low + 8 * scale) - 8 * scale  # so that the zero is exact
    codes = ((groups - minimum[..., None]) / scale[..., None]).round_().clamp_(0, _NIBBLE - 1)
    return Integers(codes.flatten(1).to(torch.uint8), scale, minimum, shift=0, bits=4)


def num_plane_bytes(rows: int, columns: int, *, bits: int, groups: int) -> int:
    """What the planes of a matrix take whose rows have so many groups each."""
    return (1 if bits == 4 else 2) * rows * (columns // 2 + 4 * groups)


def planes(integers: Integers) -> list[Plane]:
    """A matrix as the kernel's planes: one if it has 4 bits, else two, the higher nibble first."""
    if integers.bits == 4:
        return [_only(integers)]
    return [_high(integers), _low(integers)]


def below_one_another(parts: Sequence[Sequence[Plane]]) -> list[Plane]:
    """The planes of matrices that have as many of them, as those of one matrix."""
    if len(parts) == 1:
        return list(parts[0])
    return [
        Plane(torch.cat([part.packed for part in same]), torch.cat([part.scales for part in same], 1))
        for same in zip(*parts, strict=True)
    ]


def _only(part: Integers) -> Plane:
    """The zero makes up for what rounding the scale loses on average."""
    scale = _rounded(part.scale)
    sums = part.codes.view(*scale.shape, -1).sum(-1, dtype=torch.int32)
    mean = sums / (part.codes.shape[1] // scale.shape[1])
    zero = part.minimum + (8 - part.shift) * scale + (part.scale - scale) * (mean - part.shift)
    return _plane(part.codes, scale, zero)


def _high(part: Integers) -> Plane:
    """The upper nibble; the part of the shift that it can carry costs no zero, and so no rounding."""
    carried = part.shift // _NIBBLE
    scale = _rounded(part.scale) * _NIBBLE
    return _plane((part.codes >> 4) + (8 - carried), scale, torch.zeros_like(scale))


def _low(part: Integers) -> Plane:
    scale = _rounded(part.scale)
    zero = part.minimum + (8 - part.shift % _NIBBLE) * scale
    return _plane(part.codes & (_NIBBLE - 1), scale, zero)


def _plane(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> Plane:
    scales = torch.stack([scale, zero], dim=-1).transpose(0, 1)
    return Plane(order.packed(codes), scales.contiguous().bfloat16())


def _group_of_8_bits(columns: int) -> int:
    return next(group for group in GROUPS_OF_8_BITS if columns % group == 0)


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """To the nearest bfloat16, as float32."""
    return values.bfloat16().float()


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    """A group of equal weights has the scale 1: its codes are 0, whatever they are divided by."""
    rounded = _rounded(scale)
    return torch.where(rounded > 0, rounded, 1.0)
