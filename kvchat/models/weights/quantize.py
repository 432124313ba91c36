"""Integer weights for decoding: 4 bits or twice 4 bits a weight in groups of 32, as a kernel of torch reads them.

A token's time on a CPU is the bytes of weights that it reads. The kernel `_weight_int4pack_mm_for_cpu` reads 4 bits a
weight and one scale and zero a group, both in bfloat16; weights of more bits are two such planes, the high and the low
nibble. What is given (a prefill) has many rows at once, which are done sooner by a product in bfloat16, on the very same
values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from kvchat.errors import UsageError
from kvchat.models.weights.mode import Weights, WeightsMode

GROUP = 32
"""Weights of one row that share a scale."""
MAX_ROWS = 14
"""Generated tokens of one forward. The kernel keeps so many rows apart: each gets the bits that it would get alone."""
INTEGER_SHARE = 0.65
"""Bytes of integers for a byte of bfloat16, at most: two planes of 4 bits with their scales."""
LIKELIEST = 64
"""So many of a vocabulary's scores are computed with float32 sums."""
_ROWS_MULTIPLE = 64  # what the kernel takes in its fast form
_NIBBLE = 16


@dataclass(frozen=True, slots=True)
class Integers:
    """A matrix [rows, columns] as integers: weight = (codes - shift) * scale + minimum.

    `codes` uint8 [rows, columns]; `scale` and `minimum` float32 [rows, columns / GROUP]; `shift` is 0 or a multiple
    of 8; `bits` of a code are 4 or at most 8.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor
    shift: int
    bits: int

    def take_rows(self, order: torch.Tensor) -> Integers:
        """The rows in another order."""
        return Integers(self.codes[order], self.scale[order], self.minimum[order], self.shift, self.bits)


@dataclass(frozen=True, slots=True)
class Plane:
    """4 bits of each weight: weight = (code - 8) * scale + zero.

    `packed` is the kernel's own order of the codes, uint8 [rows, columns / 2]; `scales` holds scale and zero,
    bfloat16 [columns / GROUP, rows, 2].
    """

    packed: torch.Tensor
    scales: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.packed.numel() + self.scales.numel() * self.scales.element_size()


Product = Callable[[torch.Tensor], torch.Tensor]


class Projection:
    """One linear map: y = x W^T + b. `weight` [out, in] and the planes hold the same values.

    `generated` and `given` take [rows, in] to [rows, out] in x's dtype: contiguous rows, no more than MAX_ROWS, each as
    if it came alone; and any number of them.
    """

    __slots__ = ("bias", "generated", "given", "planes", "weight")

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, planes: Sequence[Plane] = ()
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.planes = tuple((plane.packed, plane.scales) for plane in planes)
        self.given: Product = partial(functional.linear, weight=weight, bias=bias)
        self.generated: Product = self._of_integers() if planes else self._row_by_row

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [rows, in] -> [rows, out], in x's dtype."""
        is_few = self.planes and x.shape[0] <= MAX_ROWS
        return self.generated(x.contiguous()) if is_few else self.given(x)

    def _row_by_row(self, x: torch.Tensor) -> torch.Tensor:
        """One row takes another kernel than several do."""
        if x.shape[0] == 1:
            return self.given(x)
        return torch.cat([self.given(row) for row in torch.split(x, 1)])

    def scores(self, x: torch.Tensor, *, exact: bool) -> torch.Tensor:
        """The same of the last projection, in float32, [rows, out]: of each row as if it came alone.

        torch's products of bfloat16 round each sum to 8 bits: the likeliest tokens of a vocabulary differ by steps of
        an eighth, or not at all. With `exact` the greatest are computed once more from the weights themselves.
        """
        if self.planes:
            sums = [self._sum(rows.contiguous(), torch.float32) for rows in torch.split(x, MAX_ROWS)]
            out = sums[0] if len(sums) == 1 else torch.cat(sums)
        else:
            out = self._row_by_row(x).float()
        if exact and x.dtype == torch.bfloat16:
            for scores, row in zip(torch.split(out, 1), torch.split(x, 1), strict=True):
                self._sharpen(scores, row)
        return out

    def _sharpen(self, scores: torch.Tensor, x: torch.Tensor) -> None:
        """Put the greatest of each row of `scores` with float32 sums in their place."""
        likeliest = scores.topk(min(LIKELIEST, scores.shape[1]), sorted=False).indices
        sums = (self.weight[likeliest].float() * x[:, None].float()).sum(-1)
        scores.scatter_(1, likeliest, sums if self.bias is None else sums + self.bias[likeliest])

    def _of_integers(self) -> Product:
        """A token has four of these a layer: a function with as little to look up as can be."""
        packed, scales = self.planes[0]
        if len(self.planes) > 1 or self.bias is not None:
            return lambda x: self._sum(x, x.dtype)
        kernel = torch._weight_int4pack_mm_for_cpu
        return lambda x: kernel(x, packed, GROUP, scales)

    def _sum(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The planes' products, added in `dtype`."""
        packed, scales = self.planes[0]
        out: torch.Tensor = torch._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales).to(dtype)
        for packed, scales in self.planes[1:]:
            out += torch._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales)
        if self.bias is not None:
            out += self.bias
        return out

    @property
    def read_bytes(self) -> int:
        """Bytes that a product with one row reads."""
        if not self.planes:
            return self.weight.numel() * self.weight.element_size()
        return sum(packed.numel() + 2 * scales.numel() for packed, scales in self.planes)


def why_no_integers(device: torch.device, dtype: torch.dtype) -> str:
    """Why integer weights can't be used here, in a few words; empty where they can."""
    if device.type != "cpu":
        return f"the integer kernels are for a CPU, not for {device.type}"
    if dtype != torch.bfloat16:
        return f"{str(dtype).removeprefix('torch.')} was asked for, and integers multiply bfloat16"
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return "this processor has no fast integer kernel"
    return ""


def choose_weights(
    wanted: str, *, device: torch.device, dtype: torch.dtype, gguf: Path | None, fits: bool
) -> Weights:
    """`auto` is integers where the device has a kernel for them and memory for both forms: a GGUF's own, else 8 bits.

    Raises UsageError for integers that were asked for and can't be.
    """
    if wanted == WeightsMode.NATIVE.value:
        return Weights(WeightsMode.NATIVE, "asked for")
    obstacle = why_no_integers(device, dtype)
    if wanted != "auto":
        if obstacle:
            raise UsageError(f"--weights {wanted} can't be used: {obstacle}", "take --weights auto")
        return Weights(WeightsMode(wanted), "asked for", is_own=gguf is not None)
    if not obstacle and not fits:
        obstacle = "the integers would not fit beside the weights"
    if obstacle:
        return Weights(WeightsMode.NATIVE, obstacle)
    if gguf is None:
        return Weights(WeightsMode.INT8, "decoding reads fewer bytes than in bfloat16")
    return Weights(WeightsMode.INT8, "the GGUF's own integers", is_own=True)


def fits(rows: int, columns: int) -> bool:
    """Whether the kernel takes a matrix of this shape."""
    return rows % _ROWS_MULTIPLE == 0 and columns % GROUP == 0


def quantize(weight: torch.Tensor, mode: WeightsMode) -> Integers:
    """The integers nearest to a matrix, group by group: 8 bits around zero, or 4 bits between its ends."""
    groups = weight.float().view(weight.shape[0], -1, GROUP)
    if mode is WeightsMode.INT8:
        scale = _divisor(groups.abs().amax(-1) / 127)
        codes = (groups / scale[..., None]).round().clamp(-128, 127) + 128
        return Integers(codes.flatten(1).to(torch.uint8), scale, torch.zeros_like(scale), shift=128, bits=8)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = _divisor((high - low) / (_NIBBLE - 1))
    minimum = _rounded(low + 8 * scale) - 8 * scale  # so that the zero is exact
    codes = ((groups - minimum[..., None]) / scale[..., None]).round().clamp(0, _NIBBLE - 1)
    return Integers(codes.flatten(1).to(torch.uint8), scale, minimum, shift=0, bits=4)


def planes(integers: Sequence[Integers]) -> list[Plane]:
    """Matrices below one another as the kernel's planes: one if all have 4 bits, else two, the higher nibble first."""
    if all(part.bits == 4 for part in integers):
        return [_plane([_low_half(part) for part in integers])]
    return [
        _plane([_high_half(part) for part in integers]),
        _plane([_low_half(part) for part in integers]),
    ]


def dequantize(integers: Sequence[Integers]) -> torch.Tensor:
    """The values that the planes stand for, bfloat16 [rows, columns]: with the scales that the kernel takes."""
    halves = [
        [half(part) for half in (_high_half, _low_half) if half is _low_half or part.bits > 4]
        for part in integers
    ]
    return torch.cat([torch.stack([_values(half) for half in part]).sum(0) for part in halves]).bfloat16()


@dataclass(frozen=True, slots=True)
class _Half:
    """A plane before packing: codes uint8 [rows, columns], scale and zero float32, exact in bfloat16."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor


def _high_half(part: Integers) -> _Half:
    """The upper nibble; the part of the shift that it can carry costs no zero, and so no rounding."""
    if part.bits == 4:
        nothing = torch.zeros_like(part.scale)
        return _Half(torch.full_like(part.codes, 8), nothing, nothing)
    carried = part.shift // _NIBBLE
    scale = _rounded(part.scale) * _NIBBLE
    return _Half((part.codes >> 4) + (8 - carried), scale, torch.zeros_like(scale))


def _low_half(part: Integers) -> _Half:
    """The lower nibble, or the only one: then its zero makes up for what rounding the scale loses on average."""
    scale = _rounded(part.scale)
    left = part.shift % _NIBBLE if part.bits > 4 else part.shift
    zero = part.minimum + (8 - left) * scale
    if part.bits == 4:
        mean = part.codes.float().view(*scale.shape, GROUP).mean(-1)
        zero += (part.scale - scale) * (mean - left)
    return _Half(part.codes & (_NIBBLE - 1), scale, _rounded(zero))


def _values(half: _Half) -> torch.Tensor:
    codes = half.codes.float().view(len(half.codes), -1, GROUP) - 8
    values: torch.Tensor = codes * half.scale[..., None] + half.zero[..., None]
    return values.flatten(1)


def _plane(halves: Sequence[_Half]) -> Plane:
    codes = torch.cat([half.codes for half in halves]).to(torch.int32)
    scales = torch.stack(
        [torch.cat([half.scale for half in halves]), torch.cat([half.zero for half in halves])], dim=-1
    )
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return Plane(packed, scales.transpose(0, 1).contiguous().bfloat16())


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """To the nearest bfloat16, as float32."""
    return values.bfloat16().float()


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    """A group of equal weights has the scale 1: its codes are 0, whatever they are divided by."""
    rounded = _rounded(scale)
    return torch.where(rounded > 0, rounded, 1.0)
