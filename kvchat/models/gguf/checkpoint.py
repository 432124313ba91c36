"""A GGUF's tensors by the names that transformers gives them, in its order of rows, read from the file as it lies there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import shown
from kvchat.models.gguf.families import (
    ModelShape,
    Target,
    expected_tensors,
    family_of,
    matched_tensors,
)
from kvchat.models.gguf.file import GgufTensor
from kvchat.models.gguf.integers import tensor_integers
from kvchat.models.gguf.keys import ELSEWHERE
from kvchat.models.gguf.parts import read_gguf
from kvchat.models.gguf.values import tensor_values
from kvchat.models.weights.quantize import Integers

_FEW_ROWS = 64
"""So many come from the mapped file though they lie apart in it."""
_PLAIN_TYPES = frozenset({"F32", "F16", "BF16"})
_Bytes = NDArray[np.uint8]


class GgufCheckpoint:
    """A `Checkpoint` of the tensors of one file, or of the parts of one, each made what its target says.

    Whole tensors are read into memory of their own, so that pages of the file are not held beside what is made of them;
    only `rows`, and a few rows that lie apart, come from the mapped file.
    """

    def __init__(self, paths: Sequence[Path], matched: Sequence[tuple[GgufTensor, Target]]) -> None:
        self._tensors = {target.name: (tensor, target) for tensor, target in matched}
        self._data: dict[Path, _Bytes] = {path: np.memmap(path, dtype=np.uint8, mode="r") for path in paths}

    @classmethod
    def open(cls, path: Path) -> GgufCheckpoint:
        """The tensors of a file. Raises ModelUnavailableError for one that can't be read, whose family is unknown, or
        whose tensors are not those of its family."""
        gguf = read_gguf(path, has_texts=False)
        family = family_of(gguf)
        if family is None:
            what = f"is of the unknown architecture {shown(gguf.architecture)}"
            raise ModelUnavailableError(f"{path} {what}", ELSEWHERE)
        return cls(gguf.paths, matched_tensors(gguf, expected_tensors(gguf, family, ModelShape.of(gguf))))

    @property
    def paths(self) -> list[Path]:
        """See Checkpoint."""
        return list(self._data)

    @property
    def names(self) -> set[str]:
        """See Checkpoint."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """See Checkpoint."""
        return self._tensors[name][1].shape

    def get(self, name: str) -> torch.Tensor:
        """See Checkpoint. What is quantised comes as the float32 that it stands for."""
        tensor, target = self._tensors[name]
        raw = np.fromfile(tensor.path, np.uint8, tensor.num_bytes, offset=tensor.start)
        values = _values(raw, replace(tensor, start=0))
        return values[_row_order(target)] if target.interleaved_heads else values

    def rows(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        """See Checkpoint."""
        tensor, target = self._tensors[name]
        wanted = _row_order(target)[indices] if target.interleaved_heads else indices
        end = tensor.start + tensor.num_bytes
        raw = self._data[tensor.path][tensor.start : end].reshape(tensor.shape[0], -1)[wanted.numpy()]
        stored = raw.reshape(-1), _some_rows(tensor, len(wanted))
        integers = tensor_integers(*stored)
        return _values(*stored) if integers is None else integers.values()

    def is_quantised(self, name: str) -> bool:
        """See Checkpoint."""
        return self._tensors[name][0].type.name not in _PLAIN_TYPES

    def num_bytes(self, name: str) -> int:
        """What a tensor takes in the file."""
        return self._tensors[name][0].num_bytes

    def part(self, name: str, start: int, end: int) -> torch.Tensor:
        """See Checkpoint."""
        return _values(*self._stored(name, start, end))

    def integers(self, name: str, start: int, end: int) -> Integers | None:
        """See Checkpoint."""
        return tensor_integers(*self._stored(name, start, end))

    def _stored(self, name: str, start: int, end: int) -> tuple[_Bytes, GgufTensor]:
        """Some rows as they are stored, and how to read them."""
        tensor, target = self._tensors[name]
        row_bytes = tensor.num_bytes // tensor.shape[0]
        if target.interleaved_heads and end - start <= _FEW_ROWS:
            kept = self._data[tensor.path][tensor.start : tensor.start + tensor.num_bytes].reshape(
                -1, row_bytes
            )
            raw = kept[_row_order(target)[start:end].numpy()].reshape(-1)
        elif target.interleaved_heads:
            raw = np.fromfile(tensor.path, np.uint8, tensor.num_bytes, offset=tensor.start)
            raw = raw.reshape(-1, row_bytes)[_row_order(target)[start:end].numpy()].reshape(-1)
        else:
            offset = tensor.start + start * row_bytes
            raw = np.fromfile(tensor.path, np.uint8, (end - start) * row_bytes, offset=offset)
        return raw, _some_rows(tensor, end - start)


def _some_rows(tensor: GgufTensor, count: int) -> GgufTensor:
    """So many of a tensor's rows, as if they were a file."""
    shape = (count, *tensor.shape[1:])
    num_bytes = math.prod(shape) // tensor.type.block_size * tensor.type.block_bytes
    return replace(tensor, shape=shape, start=0, num_bytes=num_bytes)


def _values(raw: _Bytes, tensor: GgufTensor) -> torch.Tensor:
    values: NDArray[Any] = tensor_values(raw, tensor)
    if tensor.type.name == "BF16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _row_order(target: Target) -> torch.Tensor:
    """llama.cpp lays the rows of rotated pairs side by side, transformers in two halves."""
    return torch.arange(target.shape[0]).view(target.interleaved_heads, -1, 2).transpose(1, 2).reshape(-1)
