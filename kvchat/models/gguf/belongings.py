"""GGUF files that belong to a model and are none: refused by what they say of themselves. Reads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kvchat.errors import ModelUnavailableError

_OF_ADAPTERS = (".lora_a", ".lora_b")
_ADAPTER = "an adapter (LoRA) for a model"
_REMEDIES = {
    _ADAPTER: "pass the model itself, with the adapter merged into it; --adapter takes the folder that peft saved"
}


def refuse_parts(path: Path, metadata: Mapping[str, Any], tensors: Iterable[str] = ()) -> None:
    """Raise ModelUnavailableError where a file is only a part of a model, by its metadata and its tensors' names."""
    if what := _what(metadata, tensors):
        remedy = _REMEDIES.get(what, "pass the GGUF file of the model that it belongs to")
        raise ModelUnavailableError(f"{path} is {what}, and no model that answers", remedy)


def _what(metadata: Mapping[str, Any], tensors: Iterable[str]) -> str:
    kind, architecture = metadata.get("general.type"), metadata.get("general.architecture")
    is_adapter = kind == "adapter" or "adapter.type" in metadata
    if is_adapter or any(name.endswith(_OF_ADAPTERS) for name in tensors):
        return _ADAPTER
    if kind == "mmproj" or architecture == "clip":
        return "what a model sees with (mmproj)"
    if kind == "imatrix" or any(key.startswith("imatrix.") for key in metadata):
        return "what a model's weights are rounded by (imatrix)"
    return "a control vector for a model" if architecture == "controlvector" else ""
