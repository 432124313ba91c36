"""What makes KV valid, in 16 bytes: equal fingerprints mean that equal tokens give equal KV. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash

from kvchat.models.installed import file_xxh3

_MEMORY_NAME = "weights.json"
_SHA256_DIGITS = 64
_IGNORED_CONFIG = frozenset(
    {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"}
    | {"base_model_name_or_path", "inference_mode", "revision"}  # of an adapter
)


def fingerprint(
    folder: Path, regime: Mapping[str, Any], *, memory: Path, adapter: Path | None = None
) -> bytes:
    """The fingerprint of a model's folder run in a `regime` (dtype, device kind, weights mode …), with an `adapter`.

    The weights' hashes are remembered in the folder `memory`, under each file's real path, inode, size and time.
    """
    parts = {
        "weights": _weights(folder, memory / _MEMORY_NAME),
        "config": _stated(folder / "config.json"),  # the RoPE regime stands here
        "regime": dict(regime),
        "transformers": version("transformers"),
    }
    if adapter is not None:
        parts["adapter"] = _stated(adapter / "adapter_config.json") | _weights(adapter, memory / _MEMORY_NAME)
    return xxhash.xxh3_128_digest(json.dumps(parts, sort_keys=True).encode())


def _stated(path: Path) -> dict[str, Any]:
    config = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key not in _IGNORED_CONFIG}


def _weights(folder: Path, memory: Path) -> dict[str, str]:
    """Name -> hash of every weights file. A blob of the hub is named by its own SHA-256, which is taken as it is."""
    remembered = _read(memory)
    hashes: dict[str, str] = {}
    seen: dict[str, str] = {}
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("adapter_model.bin")]):
        real = path.resolve()
        if len(real.name) == _SHA256_DIGITS and not real.suffix:
            hashes[path.name] = real.name
            continue
        state = real.stat()
        key = f"{real}|{state.st_ino}|{state.st_size}|{state.st_mtime_ns}"
        seen[key] = hashes[path.name] = remembered.get(key) or file_xxh3(real)
    if not seen.keys() <= remembered.keys():
        _write(memory, remembered | seen)
    return hashes


def _read(memory: Path) -> dict[str, str]:
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}


def _write(memory: Path, hashes: Mapping[str, str]) -> None:
    """Only a memory: what can't be written is computed again the next time."""
    temporary = memory.with_name(f".{memory.name}.{os.getpid()}")
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.write_text(json.dumps(hashes, indent=1), encoding="utf-8")
        temporary.replace(memory)
