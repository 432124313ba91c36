"""Integer weights for transformers' modules: each linear layer that the kernel takes reads integers for a few rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kvchat.models.weights.matrix import IntegerMatrix
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.packed import PackedHome, Parts
from kvchat.models.weights.projection import Projection
from kvchat.models.weights.quantize import fits, planes, quantize


class IntegerLinear(nn.Module):
    """A linear layer of the values that its integers stand for. `weight` [out, in] may be the embedding's too."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, matrix: IntegerMatrix) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.out_features, self.in_features = weight.shape
        self._projection = Projection(weight, bias, [matrix])

    @property
    def integer_bytes(self) -> int:
        """Bytes of the integers, which stand beside the weight."""
        return self._projection.read_bytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [..., in] -> [..., out]."""
        return self._projection(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)


def use_integers(model: Any, mode: WeightsMode, *, sources: Sequence[Path], home: PackedHome | None) -> None:
    """Replace the linear layers of a model made from the files `sources`, in place. The integers are kept in `home` and
    mapped from there the next time; the values that they stand for take the place of the weights."""
    layers = dict(_linear_layers(model))
    head = model.get_output_embeddings()

    def make() -> Parts:
        for name, layer in layers.items():
            wanted = WeightsMode.INT8 if layer is head else mode  # 4 bits would cost the head too much
            yield name, planes(quantize(layer.weight.detach(), wanted))

    made = home.planes(mode, sources, make) if home else dict(make())
    for name, layer in layers.items():
        matrix = IntegerMatrix(made[name])
        parameter = cast("nn.Parameter", layer.weight)  # shared with the embedding where they are tied
        values = torch.empty(matrix.columns, matrix.rows, dtype=parameter.dtype)
        parameter.data = matrix.values(0, matrix.rows, values).t().contiguous()
        parent, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(parent), own_name, IntegerLinear(parameter, layer.bias, matrix))


def _linear_layers(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if type(module) is nn.Linear and fits(*module.weight.shape) and module.weight.dtype == torch.bfloat16:
            yield name, module
