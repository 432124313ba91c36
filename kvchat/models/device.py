"""Which device and dtype a model runs on, and whether its weights fit there. Loads no model."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvchat.errors import ModelUnavailableError, OutOfMemoryError, is_memory_gone

MIN_CONTEXT = 1024
"""Tokens of context that must fit beside the weights where no context was asked for."""
CONTEXT_MULTIPLE = 1024
"""What a context is rounded down to that follows from the memory."""
_CAST = ("F64", "F32", "F16", "BF16")
"""What loading turns into the chosen dtype; everything else stays as it is stored."""
_NO_KV = ("dummy", "linear_attention", "conv")
_EXHAUSTED = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes, in bytes: its weights as they will be loaded, and the KV of one token."""

    weights: int
    kv_per_token: int

    def total(self, context: int) -> int:
        """Weights and the KV of `context` tokens."""
        return self.weights + context * self.kv_per_token

    def plus(self, weights: int) -> Need:
        """With so many more bytes of weights."""
        return Need(self.weights + weights, self.kv_per_token)


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA, then MPS, then CPU. Raises ModelUnavailableError for one that is not there."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if present[kind]))
    if not present[wanted]:
        raise ModelUnavailableError(
            f"this machine has no {wanted} device that torch can use", "take --device auto"
        )
    return torch.device(wanted)


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it natively, float16 on MPS, else float32."""
    if wanted != "auto":
        chosen = getattr(torch, wanted)
        assert isinstance(chosen, torch.dtype)
        return chosen
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "mps":
        return torch.float16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def check_memory(
    name: str, need: Need, free: int | None, *, device: torch.device, context: int | None
) -> None:
    """Raises OutOfMemoryError, with the numbers, for weights that don't fit into `free` bytes beside their KV.

    `context` is what was asked for, in tokens; without one a short conversation must fit. `free` None: not known.
    """
    tokens = context or MIN_CONTEXT
    if free is None or need.total(tokens) <= free:
        return
    room = (free - need.weights) // max(1, need.kv_per_token)
    if context and room >= MIN_CONTEXT:
        remedy = f"take --context {room} or less"
    else:
        elsewhere = ", or --device cpu" if device.type != "cpu" else ""
        remedy = f"take a smaller model, or fewer bytes a weight (--dtype bfloat16 halves float32){elsewhere}"
    raise OutOfMemoryError(
        f"{name} takes {_gigabytes(need.weights)} of weights and {_gigabytes(tokens * need.kv_per_token)} of KV"
        f" for {tokens} tokens, and {device} has {_gigabytes(free)} free",
        remedy,
    )


def fitting_context(need: Need, free: int | None) -> int:
    """The largest context whose KV fits into `free` bytes beside the weights, in tokens; no model reads more than the
    largest number where that is not known."""
    if free is None or not need.kv_per_token:
        return sys.maxsize
    room = (free - need.weights) // need.kv_per_token
    return max(MIN_CONTEXT, room // CONTEXT_MULTIPLE * CONTEXT_MULTIPLE)


def memory_need(folder: Path, config: Any, dtype: torch.dtype) -> Need:
    """What the model of a folder takes when it is loaded as `dtype`; `config` is its transformers config."""
    return Need(weights_bytes(folder, dtype), kv_bytes_per_token(config, dtype))


def weights_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of a folder's weights as `dtype`, exactly, from the headers of the safetensors files that are loaded."""
    return sum(_loaded_bytes(path, dtype) for path in _weight_files(folder))


def kv_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Bytes of KV that one token takes in all layers; 0 where the config does not tell."""
    from transformers.cache_utils import (
        get_layer_types_and_kwargs,  # not for models that do without transformers
    )

    text = config.get_text_config(decoder=True)
    try:
        kinds = get_layer_types_and_kwargs(text)[0]
        layers = [
            layer for kind, layer in zip(kinds, text.per_layer_config, strict=True) if kind not in _NO_KV
        ]
        return sum(_kv_numbers(layer) for layer in layers) * dtype.itemsize
    except (AttributeError, TypeError, ValueError, KeyError, ArithmeticError):
        return 0


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where nobody can say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min(_free_on_machine(), default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: not every device has a type of its own for it."""
    if isinstance(error, torch.OutOfMemoryError) or is_memory_gone(error):
        return True
    return isinstance(error, RuntimeError) and bool(_EXHAUSTED.search(str(error)))


def empty_device_cache(device: torch.device) -> None:
    """Give back what torch's allocator holds without using it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load: those of the index, or the one file, or whatever there is."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names) if (folder / name).exists()]
    whole = folder / "model.safetensors"
    return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))


def _loaded_bytes(path: Path, dtype: torch.dtype) -> int:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return sum(
        math.prod(tensor["shape"]) * dtype.itemsize
        if tensor["dtype"] in _CAST
        else tensor["data_offsets"][1] - tensor["data_offsets"][0]
        for tensor in header.values()
    )


def _kv_numbers(layer: Any) -> int:
    """How many numbers one token's K and V are in a layer of this config; latent attention keeps what both come from."""
    if latent := getattr(layer, "kv_lora_rank", None):
        return int(latent + layer.qk_rope_head_dim)
    heads = getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads
    dim = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
    return int(2 * heads * dim)


def _free_on_machine() -> Iterator[int]:
    """What the system says is available, and what is left of a container's limit."""
    try:
        fields = dict(
            line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        )
        yield int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # at most; nobody knows what is in use
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(encoding="ascii"), re.M)
    except (OSError, ValueError):
        return
    yield limit - used + (int(cached[1]) if cached else 0)  # cached files make way


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
