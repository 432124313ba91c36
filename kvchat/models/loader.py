"""Files -> LoadedModel: chooses device, dtype, weights and network. Knows no conversation and no engine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvchat.errors import ModelUnavailableError, OutOfMemoryError, UsageError
from kvchat.models import flash
from kvchat.models.gguf_matrices import bits
from kvchat.models.lean_loader import Checkpoint, PackedHome, load_integers, load_native, names_fit
from kvchat.models.lean_shape import LeanShape, lean_shape
from kvchat.models.loaded import LoadedModel, id_list
from kvchat.models.quantize import why_no_integers
from kvchat.models.reuse import BLOCKS
from kvchat.models.weights import Weights, WeightsMode

_INT4_BITS = 6.0
"""A GGUF of fewer bits a weight than this on average is one of 4 bits, with a few matrices of more."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a model is to be run; `auto` is chosen by what the machine does well, `context` None is the model's own."""

    dtype: str = "auto"
    device: str = "auto"
    weights: str = "auto"
    context: int | None = None
    trust_remote_code: bool = False


def load_model(
    folder: Path, *, name: str, wanted: Wanted = Wanted(), gguf: Path | None = None, root: Path | None = None
) -> LoadedModel:
    """The model of a local folder. Raises ModelUnavailableError, OutOfMemoryError and UsageError, with their remedies.

    `gguf` is the file that the folder was imported from: its integers are used as they are. Integers that are made are
    kept under the models' `root`.
    """
    device = choose_device(wanted.device)
    dtype = choose_dtype(wanted.dtype, device)
    _check_memory(folder, name, dtype, device)
    found = None if wanted.trust_remote_code or device.type != "cpu" else _lean(folder)
    if found is None:
        from kvchat.models.stock_loader import (
            load_stock,  # transformers alone takes longer to import than a model
        )

        return load_stock(
            folder,
            name=name,
            dtype=dtype,
            device=device,
            context=wanted.context,
            trust_remote_code=wanted.trust_remote_code,
        )
    shape, checkpoint = found
    weights = choose_weights(wanted.weights, device=device, dtype=dtype, gguf=gguf)
    if weights.mode is WeightsMode.NATIVE:
        network = load_native(shape, checkpoint, dtype)
    else:
        home = PackedHome.of(root, folder) if root else None
        network = load_integers(shape, checkpoint, weights.mode, gguf=gguf, home=home)
    defaults = _read_json(folder / "generation_config.json")
    config = _read_json(folder / "config.json")
    return LoadedModel(
        name=name,
        architecture=str(config["model_type"]),
        network=network,
        device=device,
        dtype=dtype,
        context=min(wanted.context or shape.context, shape.context),
        vocab_size=shape.vocabulary,
        rule=BLOCKS,
        eos_ids=frozenset(id_list(defaults.get("eos_token_id")) or id_list(config.get("eos_token_id"))),
        generation_defaults={key: value for key, value in defaults.items() if value is not None},
        weights=weights,
    )


def choose_weights(wanted: str, *, device: torch.device, dtype: torch.dtype, gguf: Path | None) -> Weights:
    """`auto` is integers where the device has a kernel for them: a GGUF's own, else 8 bits. Raises UsageError for
    integers that were asked for and can't be."""
    if wanted == WeightsMode.NATIVE.value:
        return Weights(WeightsMode.NATIVE, "asked for")
    obstacle = why_no_integers(device, dtype)
    if wanted != "auto":
        if obstacle:
            raise UsageError(f"--weights {wanted} can't be used: {obstacle}", "take --weights auto")
        return Weights(WeightsMode(wanted), "asked for", is_own=gguf is not None)
    if obstacle:
        return Weights(WeightsMode.NATIVE, obstacle)
    if gguf is None or bits(gguf) > 8 * 1.5:
        return Weights(WeightsMode.INT8, "decoding reads half the bytes of bfloat16")
    mode = WeightsMode.INT4 if bits(gguf) < _INT4_BITS else WeightsMode.INT8
    return Weights(mode, "the GGUF's own integers", is_own=True)


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


def _lean(folder: Path) -> tuple[LeanShape, Checkpoint] | None:
    """What our own network needs, if the folder's model is one that it surely runs right."""
    try:
        config = _read_json(folder / "config.json")
        shape = lean_shape(config) if flash.HAS_CPU_FLASH else None
        checkpoint = Checkpoint(folder) if shape else None
    except Exception:  # a config or a file that can't be read: transformers says what is wrong with it
        return None
    if shape is None or checkpoint is None or not names_fit(shape, checkpoint.names):
        return None
    return shape, checkpoint


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _check_memory(folder: Path, name: str, dtype: torch.dtype, device: torch.device) -> None:
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    free = _free_bytes(device)
    if free is not None and stored > 2 * free + (1 << 30):  # even at half the stored width it could not fit
        raise OutOfMemoryError(
            f"{name} has {stored / 1e9:.1f} GB of weights, and {device} has {free / 1e9:.1f} GB free ({dtype})",
            "take a smaller model",
        )


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024
