"""Products with matrices of floating numbers whose rows keep their bits in any company; knows tensors alone."""

from __future__ import annotations

import torch
from torch.nn import functional


def has_apart(dtype: torch.dtype) -> bool:
    """Whether a product of `dtype` gives a row the same bits at every number of rows from two on.

    Measured of oneDNN's product of float32 at shapes of 0.1B to 8B, with AVX2 and AVX-512, with 1 and 2 threads, and
    checked when a model is loaded. It is up to twice as fast as MKL's for 2 to 64 rows, and as fast for more.
    """
    return dtype == torch.float32 and _HAS_ONEDNN


def is_cut_by_size(dtype: torch.dtype) -> bool:
    """Whether products of `dtype` cut a row's sum by how large they are in all, as those with AMX do."""
    return dtype == torch.bfloat16 and _HAS_ONEDNN and torch.cpu._is_amx_tile_supported()


def laid_out(weight: torch.Tensor) -> torch.Tensor:
    """`weight` [out, in] in the order in which products of few rows read it fastest, where there is one; else itself.

    It is good for `linear` and `alone` only.
    """
    if not has_apart(weight.dtype):
        return weight
    with torch.inference_mode(False):
        ordered: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _FEW)
        return ordered


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b, [rows, in] -> [rows, out]; `weight` [out, in] as it is, turned, or `laid_out`.

    A row's bits are the same in every company of float32; of bfloat16 in one of a multiple of ROWS_MULTIPLE rows.
    """
    rows = x.shape[0]
    if has_apart(x.dtype):
        if rows == 1:
            x = torch.cat((x, x))  # as fast where the matrix is laid out: what takes the time is reading it
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", (), "")
        return out[:rows]
    if not is_cut_by_size(x.dtype):
        return functional.linear(x, weight, bias)
    x = functional.pad(x, (0, 0, 0, -rows % TILE_ROWS))
    if len(x) == TILE_ROWS:
        return functional.linear(x, weight, bias)[:rows]
    return torch.cat([functional.linear(tile, weight, bias) for tile in torch.split(x, TILE_ROWS)])[:rows]


def alone(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same of one row: where the matrix is not `laid_out`, as fast as one row can be, with bits of its own."""
    return linear(x, weight, bias) if weight.is_mkldnn else functional.linear(x, weight, bias)


ROWS_MULTIPLE = 8
"""Beside a multiple of so many rows `linear` gives each row of bfloat16 the same bits. Measured."""
TILE_ROWS = 64
"""Rows of one product where bits depend on their number. Measured: of fewer, prefill is slower; with more, a short message."""
_FEW = 16
_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
