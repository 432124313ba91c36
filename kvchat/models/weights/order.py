"""The order in which the kernel wants codes of 4 bits: found once by asking torch's own packing, and turned either way."""

from __future__ import annotations

from functools import cache

import torch

_WIDTHS = (32, 64)
"""Rows that lie side by side: of AVX2, of AVX-512. A matrix has a multiple of the larger."""


@cache
def block_rows() -> int:
    """Rows of one block here; 0 where torch packs in an order that is not known.

    A block [columns, rows / 2] holds a byte for two codes of one column: row r in the low half, r + rows / 2 in the high.
    """
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (2 * _WIDTHS[-1], 32), generator=generator, dtype=torch.uint8)
    try:
        wanted = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    except (RuntimeError, AttributeError):  # not every torch has it
        return 0
    return next((width for width in _WIDTHS if torch.equal(_packed(codes, width), wanted)), 0)


def packed(codes: torch.Tensor) -> torch.Tensor:
    """Codes of 4 bits, uint8 [rows, columns] -> the kernel's order, uint8 [rows, columns / 2]."""
    return _packed(codes, block_rows())


def _packed(codes: torch.Tensor, width: int) -> torch.Tensor:
    rows, columns = codes.shape
    halves = codes.view(rows // width, 2, width // 2, columns)
    joined = halves[:, 1] << 4
    joined |= halves[:, 0]
    # reshape would leave a square matrix of one block as it lies
    return joined.transpose(1, 2).contiguous().view(rows, columns // 2)


def blocks(packed: torch.Tensor) -> torch.Tensor:
    """The same bytes as blocks, [blocks, columns, block_rows / 2]."""
    rows, half = packed.shape
    width = block_rows()
    return packed.view(rows // width, 2 * half, width // 2)
