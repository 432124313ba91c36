"""A GGUF's stored numbers -> the values that they stand for; knows no torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvchat.models.gguf.file import GgufTensor

_LONG_ROW = 1 << 13  # values; measured: 16 of them fit a core's cache together with what is made of them


def tensor_values(data: NDArray[np.uint8], tensor: GgufTensor) -> NDArray[Any]:
    """A tensor's values from the mapped file: float32, or F16 and BF16 as they are stored (BF16 as uint16)."""
    raw = data[tensor.start : tensor.start + tensor.num_bytes]
    plain = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}.get(tensor.type.name)
    if plain is not None:
        return raw.view(plain).reshape(tensor.shape)
    from gguf import GGMLQuantizationType, dequantize  # as slow to import as a small model to load

    num_rows = math.prod(tensor.shape) // tensor.shape[-1]
    rows = raw.reshape(num_rows // _rows_at_once(num_rows, tensor.shape[-1]), -1)
    values: NDArray[Any] = dequantize(rows, GGMLQuantizationType[tensor.type.name])
    return values.reshape(tensor.shape)


def _rows_at_once(num_rows: int, num_columns: int) -> int:
    """How many rows to hand over as one: the package takes 16 at a time, and short ones cost it four times more."""
    merged = 1
    while num_rows % (2 * merged) == 0 and 2 * merged * num_columns <= _LONG_ROW:
        merged *= 2
    return merged
