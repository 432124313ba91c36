"""The integers of a GGUF's quantised tensors as they stand in the file; knows no kernel.

Block formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvchat.models.gguf.file import GgufTensor
from kvchat.models.weights.quantize import Integers

_Bytes = NDArray[np.uint8]
_Parts = tuple[
    NDArray[Any], NDArray[Any], NDArray[Any]
]  # codes [blocks, n], scales and minima [blocks, n / 32]


def tensor_integers(data: _Bytes, tensor: GgufTensor) -> Integers | None:
    """A matrix's integers from the mapped file; None for a type that has none in groups of 32."""
    reader = _READERS.get(tensor.type.name)
    if reader is None or len(tensor.shape) != 2:
        return None
    read, shift, bits = reader
    raw = data[tensor.start : tensor.start + tensor.num_bytes].reshape(-1, tensor.type.block_bytes)
    codes, scale, minimum = (np.ascontiguousarray(part).reshape(tensor.shape[0], -1) for part in read(raw))
    return Integers(
        torch.from_numpy(codes), torch.from_numpy(scale), torch.from_numpy(minimum), shift=shift, bits=bits
    )


def _q4_0(raw: _Bytes) -> _Parts:
    scale = _halves(raw, 0)
    return _nibbles(raw[:, 2:]), scale, np.zeros_like(scale)


def _q4_1(raw: _Bytes) -> _Parts:
    return _nibbles(raw[:, 4:]), _halves(raw, 0), _halves(raw, 2)


def _q5_0(raw: _Bytes) -> _Parts:
    scale = _halves(raw, 0)
    return _nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6]), scale, np.zeros_like(scale)


def _q5_1(raw: _Bytes) -> _Parts:
    return _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8]), _halves(raw, 0), _halves(raw, 2)


def _q8_0(raw: _Bytes) -> _Parts:
    scale = _halves(raw, 0)
    return raw[:, 2:] ^ np.uint8(0x80), scale, np.zeros_like(scale)  # signed bytes, moved up by 128


def _q4_k(raw: _Bytes) -> _Parts:
    scale, minimum = _k_scales(raw)
    return _k_nibbles(raw[:, 16:144]), scale, minimum


def _q5_k(raw: _Bytes) -> _Parts:
    scale, minimum = _k_scales(raw)
    bits = np.stack(
        [(raw[:, 16:48] >> group) & 1 for group in range(8)], axis=1
    )  # bit g of 32 bytes: group g
    codes = _k_nibbles(raw[:, 48:176]) | (bits.reshape(len(raw), 256) << 4)
    return codes, scale, minimum


_READERS: Mapping[str, tuple[Callable[[_Bytes], _Parts], int, int]] = MappingProxyType(
    {
        "Q4_0": (_q4_0, 8, 4),
        "Q4_1": (_q4_1, 0, 4),
        "Q5_0": (_q5_0, 16, 5),
        "Q5_1": (_q5_1, 0, 5),
        "Q8_0": (_q8_0, 128, 8),
        "Q4_K": (_q4_k, 0, 4),
        "Q5_K": (_q5_k, 0, 5),
    }
)
"""By type: how blocks are read, what is subtracted from a code, bits of a code."""


def _halves(raw: _Bytes, start: int) -> NDArray[np.float32]:
    """The float16 at a byte of every block, [blocks, 1]."""
    return np.ascontiguousarray(raw[:, start : start + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: _Bytes) -> _Bytes:
    """16 bytes -> 32 codes: the low halves first."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(packed: _Bytes) -> _Bytes:
    """4 bytes -> 32 codes of 0 or 16."""
    bits = np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little")
    return bits * np.uint8(16)


def _k_nibbles(packed: _Bytes) -> _Bytes:
    """128 bytes -> 256 codes: of every 32 bytes the low halves, then the high ones."""
    quarters = packed.reshape(-1, 4, 32)
    return np.stack([quarters & 15, quarters >> 4], axis=2).reshape(-1, 256)


def _k_scales(raw: _Bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scales and minima of a block's 8 groups, each 6 bits, packed into 12 bytes behind two float16."""
    factor, offset, packed = _halves(raw, 0), _halves(raw, 2), raw[:, 4:16]
    low, middle, mixed = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([low & 63, (mixed & 15) | ((low >> 6) << 4)], axis=1)
    minimum = np.concatenate([middle & 63, (mixed >> 4) | ((middle >> 6) << 4)], axis=1)
    return factor * scale, -offset * minimum
