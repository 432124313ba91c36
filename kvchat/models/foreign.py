"""Weights that other tools packed: told by config.json and by how tensors are stored, and refused in one line. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import read_object, shown
from kvchat.models.sources.folder import tensor_dtypes

_PLAIN = "take the model as its authors published it (in bfloat16), or a GGUF of it"
METHODS = frozenset(("fp8", "mxfp4"))
"""What packs weights and is read here (see scaled.py)."""
_METHODS: Mapping[str, str] = MappingProxyType(
    {
        "gptq": "GPTQ",
        "awq": "AWQ",
        "bitsandbytes": "bitsandbytes",
        "bitsandbytes_4bit": "bitsandbytes",
        "bitsandbytes_8bit": "bitsandbytes",
        "compressed-tensors": "compressed-tensors",
        "quark": "Quark",
        "torchao": "torchao",
        "hqq": "HQQ",
        "aqlm": "AQLM",
        "eetq": "EETQ",
        "quanto": "quanto",
        "fbgemm_fp8": "FBGEMM fp8",
        "modelopt": "ModelOpt",
    }
)
"""What packs weights, by the name that config.json has for it."""
_FP8 = frozenset(("F8_E4M3", "F8_E5M2"))
_PACKED = frozenset((*_FP8, "U8", "I8", "I16", "U16", "I32", "U32", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"))
_SCALES = "_scale_inv"


def check_weights(folder: Path, name: str) -> None:
    """Raise ModelUnavailableError, saying what they are and what to take instead, for weights that can't be read right."""
    config = read_object(folder / "config.json")
    stated = config.get("quantization_config")
    if not stated and isinstance(config.get("quantization"), dict):
        raise ModelUnavailableError(f"{name} is packed for MLX, Apple's framework", _PLAIN)
    method = str(stated.get("quant_method", "")) if isinstance(stated, dict) else ""
    if method in _METHODS:
        raise ModelUnavailableError(
            f"{name} is packed by {_METHODS[method]}, which kvchat does not read", _PLAIN
        )
    if stated and method not in METHODS:
        raise ModelUnavailableError(
            f"{name} is packed by {shown(method)}, which kvchat does not know", _PLAIN
        )
    _check_scales(folder, name, config)


def _check_scales(folder: Path, name: str, config: Mapping[str, Any]) -> None:
    """Numbers of 8 bits and fewer mean nothing without their scales."""
    dtypes = tensor_dtypes(folder)
    for tensor, dtype in dtypes.items():
        if dtype not in _PACKED or not tensor.endswith(("weight", "_proj")):
            continue
        has_scales = f"{tensor}{_SCALES}" in dtypes
        if not has_scales or not config.get("quantization_config"):
            what = f"{name}: its tensor {tensor} is stored as {dtype}" + (
                ", and config.json does not say how to read it" if has_scales else " without scales"
            )
            raise ModelUnavailableError(what, _PLAIN)
