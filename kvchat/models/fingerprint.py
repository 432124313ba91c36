"""What makes KV valid, in 16 bytes: equal fingerprints mean that equal tokens give equal KV. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash

from kvchat.models.documents import read_object
from kvchat.models.gguf.parts import named_parts
from kvchat.models.sources.contents import Contents

_IGNORED_CONFIG = frozenset(
    {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"}
    | {"base_model_name_or_path", "inference_mode", "revision"}  # of an adapter
)


def fingerprint(
    folder: Path,
    regime: Mapping[str, Any],
    *,
    contents: Contents,
    adapter: Path | None = None,
    gguf: Path | None = None,
) -> bytes:
    """The fingerprint of a model's folder run in a `regime` (dtype, device kind, weights mode …), with an `adapter`;
    `gguf` holds the weights where the folder has none.

    Raises ModelUnavailableError for a weights file that is damaged, as far as that can be told.
    """
    parts = {
        "weights": _weights(folder, contents) or _gguf_weights(gguf, contents),
        "config": _stated(folder / "config.json"),  # the RoPE regime stands here
        "regime": dict(regime),
        "transformers": version("transformers"),
    }
    if adapter is not None:
        parts["adapter"] = _stated(adapter / "adapter_config.json") | _weights(adapter, contents)
    return xxhash.xxh3_128_digest(json.dumps(parts, sort_keys=True).encode())


def _gguf_weights(gguf: Path | None, contents: Contents) -> dict[str, str]:
    """The same of a GGUF, or of its parts."""
    first, *others = named_parts(gguf) if gguf else (None,)
    weights = {"gguf": contents.identity(first) if first else ""}
    return weights | {f"gguf {number}": contents.identity(path) for number, path in enumerate(others, 2)}


def _stated(path: Path) -> dict[str, Any]:
    config = read_object(path)
    return {key: value for key, value in config.items() if key not in _IGNORED_CONFIG}


def _weights(folder: Path, contents: Contents) -> dict[str, str]:
    """Name -> what stands for the content of every weights file."""
    paths = sorted([*folder.glob("*.safetensors"), *folder.glob("adapter_model.bin")])
    return {path.name: contents.identity(path) for path in paths}
