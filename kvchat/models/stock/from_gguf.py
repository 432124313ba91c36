"""A GGUF that transformers' modules run: its tensors made what they want, one at a time, and held against them strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import boundary
from kvchat.models.gguf.file import GgufFile, GgufTensor
from kvchat.models.gguf.keys import ELSEWHERE
from kvchat.models.gguf.rules import same
from kvchat.models.gguf.understanding import Understood, understand
from kvchat.models.gguf.values import tensor_values

_AGAIN = "fetch the file again"


@dataclass(frozen=True, slots=True)
class StockGguf:
    """One file, or the parts of one, understood. `shapes` are those of transformers' tensors, by name, and no other tensor is in the file."""

    gguf: GgufFile
    understood: Understood
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, gguf: GgufFile) -> StockGguf:
        """The file's model. Raises ModelUnavailableError for what is not understood, a tensor too few and one too many."""
        understood = understand(gguf)
        model = cls(gguf, understood, _shapes(understood))
        model._check_tensors()
        return model

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says."""
        return dict(self.understood.config)

    @property
    def paths(self) -> list[Path]:
        """The files that the tensors come from."""
        return list(self.gguf.paths)

    @property
    def names(self) -> set[str]:
        """Of all tensors, as transformers calls them."""
        return set(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.shapes[name]

    def get(self, name: str) -> torch.Tensor:
        """A tensor's values. Raises ModelUnavailableError for one that comes out in another shape."""
        source, path = self.understood.sources[name], self.gguf.path
        first = source.tensors[0].name[:60]
        with boundary(f"{path}: tensor {first} is not as its sizes say", _AGAIN):
            made = source.make([_values(tensor) for tensor in source.tensors], self.config)
        if tuple(made.shape) != self.shapes[name]:
            raise self._misshapen(name, tuple(made.shape))
        return made

    def _check_tensors(self) -> None:
        path, sources = self.gguf.path, self.understood.sources
        missing = [name for name in self.shapes if name not in sources]
        if missing:
            raise ModelUnavailableError(f"{path} ({self.gguf.architecture}) lacks {missing[0]}", ELSEWHERE)
        extra = [source.tensors[0].name for name, source in sources.items() if name not in self.shapes]
        if extra:
            what = f"{path} ({self.gguf.architecture}) has the unknown tensor {extra[0][:60]}"
            raise ModelUnavailableError(what, ELSEWHERE)
        for name, source in sources.items():
            if source.make is same and source.tensors[0].shape != self.shapes[name]:
                raise self._misshapen(name, source.tensors[0].shape)

    def _misshapen(self, name: str, shape: tuple[int, ...]) -> ModelUnavailableError:
        first = self.understood.sources[name].tensors[0].name[:60]
        return ModelUnavailableError(
            f"{self.gguf.path}: tensor {first} is {shape}, not {self.shapes[name]}", _AGAIN
        )


def _shapes(understood: Understood) -> dict[str, tuple[int, ...]]:
    """The tensors that transformers' model has, without those that are another's twin."""
    stated = dict(understood.config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(stated.pop("model_type"), **stated))
    persistent = model.state_dict().keys()
    buffers = {name: tuple(buffer.shape) for name, buffer in model.named_buffers() if name in persistent}
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} | buffers


def _values(tensor: GgufTensor) -> torch.Tensor:
    """A tensor as the file has it, read into memory of its own."""
    raw = np.fromfile(tensor.path, np.uint8, tensor.num_bytes, offset=tensor.start)
    values = tensor_values(raw, replace(tensor, start=0))
    if tensor.type.name == "BF16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
