"""A GGUF's matrices by the names that transformers gives them, as integers in the order that transformers wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kvchat.models.gguf.families import ModelShape, expected_tensors, family_of, matched_tensors
from kvchat.models.gguf.file import read_gguf
from kvchat.models.gguf.integers import tensor_integers
from kvchat.models.weights.quantize import Integers

_PLAIN_TYPES = frozenset({"F32", "F16", "BF16"})


class GgufMatrices:
    """The quantised matrices of one file. Raises ModelUnavailableError for a file that can't be read."""

    def __init__(self, path: Path) -> None:
        gguf = read_gguf(path)
        family = family_of(gguf)
        matched = matched_tensors(gguf, expected_tensors(gguf, family, ModelShape.of(gguf))) if family else []
        self._tensors = {target.name: (tensor, target) for tensor, target in matched}
        self._data = np.memmap(path, dtype=np.uint8, mode="r")

    def is_quantised(self, name: str) -> bool:
        """Whether the file holds a matrix in fewer bits than it was trained in."""
        return name in self._tensors and self._tensors[name][0].type.name not in _PLAIN_TYPES

    def integers(self, name: str) -> Integers | None:
        """A matrix's own integers; None where the file has none that a kernel takes."""
        if name not in self._tensors:
            return None
        tensor, target = self._tensors[name]
        found = tensor_integers(self._data, tensor)
        if found is None or not target.interleaved_heads:
            return found
        return found.take_rows(_row_order(tensor.shape[0], target.interleaved_heads))


def _row_order(num_rows: int, heads: int) -> torch.Tensor:
    """llama.cpp lays the rows of rotated pairs side by side, transformers in two halves."""
    return torch.arange(num_rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)
