"""A GGUF that transformers' modules run: its tensors made what they want, one at a time, and held against them strictly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import boundary
from kvchat.models.gguf.file import GgufFile, GgufTensor, tensor_values
from kvchat.models.gguf.keys import ELSEWHERE
from kvchat.models.gguf.understanding import Understood, understand

_AGAIN = "fetch the file again"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class StockGguf:
    """One file, understood. `shapes` are those of transformers' tensors, by name, and no other tensor is in the file."""

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
    def dtype(self) -> str:
        """The type that holds all values."""
        return str(self.understood.config["dtype"])

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor by transformers' name. Raises ModelUnavailableError for one that comes out in another shape."""
        data = np.memmap(self.gguf.path, dtype=np.uint8, mode="r")
        for name, shape in self.shapes.items():
            source = self.understood.sources[name]
            first = source.tensors[0]
            with boundary(f"{self.gguf.path}: tensor {first.name[:60]} is not as its sizes say", _AGAIN):
                made = source.make([_values(data, tensor) for tensor in source.tensors], self.config)
            if tuple(made.shape) != shape:
                what = f"{self.gguf.path}: tensor {first.name[:60]} is {tuple(made.shape)}, not {shape}"
                raise ModelUnavailableError(what, _AGAIN)
            yield name, made.to(_DTYPES.get(self.dtype, torch.float32))

    def arrays(self) -> Iterator[NDArray[Any]]:
        """The tensors' numbers in the order of `shapes`, as they are stored."""
        for _, tensor in self.tensors():
            is_half = tensor.dtype in (torch.float16, torch.bfloat16)
            yield (tensor.contiguous().view(torch.int16) if is_half else tensor.contiguous()).numpy()

    def _check_tensors(self) -> None:
        path, sources = self.gguf.path, self.understood.sources
        missing = [name for name in self.shapes if name not in sources]
        if missing:
            raise ModelUnavailableError(f"{path} ({self.gguf.architecture}) lacks {missing[0]}", ELSEWHERE)
        extra = [source.tensors[0].name for name, source in sources.items() if name not in self.shapes]
        if extra:
            what = f"{path} ({self.gguf.architecture}) has the unknown tensor {extra[0][:60]}"
            raise ModelUnavailableError(what, ELSEWHERE)


def _shapes(understood: Understood) -> dict[str, tuple[int, ...]]:
    """The tensors that transformers' model has, without those that are another's twin."""
    stated = dict(understood.config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(stated.pop("model_type"), **stated))
    persistent = model.state_dict().keys()
    buffers = {name: tuple(buffer.shape) for name, buffer in model.named_buffers() if name in persistent}
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} | buffers


def _values(data: NDArray[np.uint8], tensor: GgufTensor) -> torch.Tensor:
    values = tensor_values(data, tensor)
    if tensor.type.name == "BF16":
        return torch.from_numpy(np.array(values).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(values))
