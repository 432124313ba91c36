"""A GGUF that transformers' modules run: its tensors made what they want, one at a time, and held against them strictly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import boundary
from kvchat.models.gguf.file import GgufFile, GgufTensor, tensor_values
from kvchat.models.gguf.keys import ELSEWHERE
from kvchat.models.gguf.understanding import Understood


def transformers_config(understood: Understood) -> Any:
    """The config that transformers makes of what a file says."""
    stated = dict(understood.config)
    return AutoConfig.for_model(stated.pop("model_type"), **stated)


def expected_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The tensors that a model of `config` has, without those that are another's twin."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes: dict[str, tuple[int, ...]] = {}
    seen: set[int] = set()
    for name, parameter in model.named_parameters():  # a tied one comes once
        shapes[name] = tuple(parameter.shape)
        seen.add(id(parameter))
    persistent = model.state_dict().keys()
    shapes |= {name: tuple(buffer.shape) for name, buffer in model.named_buffers() if name in persistent}
    return shapes


def check_tensors(gguf: GgufFile, understood: Understood, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelUnavailableError, naming the tensor, where the file has one too few or one too many."""
    missing = [name for name in expected if name not in understood.sources]
    if missing:
        raise ModelUnavailableError(f"{gguf.path} ({gguf.architecture}) lacks {missing[0]}", ELSEWHERE)
    for name, source in understood.sources.items():
        if name not in expected:
            what = f"{gguf.path} ({gguf.architecture}) has the tensor {source.tensors[0].name[:60]} too many"
            raise ModelUnavailableError(what, ELSEWHERE)


def tensors(
    gguf: GgufFile, understood: Understood, expected: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by transformers' name. Raises ModelUnavailableError for one that comes out in another shape."""
    data = np.memmap(gguf.path, dtype=np.uint8, mode="r")
    for name, shape in expected.items():
        source = understood.sources[name]
        with boundary(f"{gguf.path}: tensor {source.tensors[0].name[:60]} is not as its sizes say", ELSEWHERE):
            made = source.make([_values(data, tensor) for tensor in source.tensors], understood.config)
        if tuple(made.shape) != shape:
            what = f"{gguf.path}: tensor {source.tensors[0].name[:60]} is {tuple(made.shape)}, not {shape}"
            raise ModelUnavailableError(what, "fetch the file again")
        yield name, made


def _values(data: np.ndarray[Any, Any], tensor: GgufTensor) -> torch.Tensor:
    values = tensor_values(data, tensor)
    if tensor.type.name == "BF16":
        return torch.from_numpy(np.array(values).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(values))
