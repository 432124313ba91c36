"""Files -> LoadedModel: chooses device, dtype, weights and network. Knows no conversation and no engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kvchat.config import ModelConfig
from kvchat.models.checkpoint import Checkpoint, SafetensorsCheckpoint
from kvchat.models.device import (
    Need,
    check_memory,
    choose_device,
    choose_dtype,
    free_bytes,
    weights_bytes,
)
from kvchat.models.documents import read_object
from kvchat.models.generation import read_generation
from kvchat.models.lean import flash
from kvchat.models.lean.loader import is_of, load_integers, load_native
from kvchat.models.lean.network import LeanNetwork
from kvchat.models.lean.shape import LeanShape, lean_shape
from kvchat.models.loaded import LoadedModel, id_list
from kvchat.models.reuse import BLOCKS
from kvchat.models.weights.mode import Weights, WeightsMode
from kvchat.models.weights.packed import PackedHome
from kvchat.models.weights.quantize import INTEGER_SHARE, choose_weights


@dataclass(frozen=True, slots=True)
class Origins:
    """Where a folder comes from: the GGUF that it was imported from, whose integers are used as they are, and the
    models' `root`, under which integers that are made are kept."""

    gguf: Path | None = None
    root: Path | None = None


def load_model(
    folder: Path,
    settings: ModelConfig,
    *,
    name: str | None = None,
    origin: Origins = Origins(),
    free_bytes: Callable[[torch.device], int | None] = free_bytes,
) -> LoadedModel:
    """The model of a local folder, run as `settings` say; `name` is what it is called, if not as it is there.

    Weights that don't fit into the device's `free_bytes` are not touched. Raises ModelUnavailableError,
    OutOfMemoryError and UsageError, each with its remedy.
    """
    name = name or settings.name
    if settings.threads:
        torch.set_num_threads(settings.threads)  # of the thread that loads, which is the one that computes
    device = choose_device(settings.device)
    free = free_bytes(device)
    lean = _lean(folder) if device.type == "cpu" and not _needs_transformers(settings) else None
    if lean is not None:
        return _load_lean(folder, settings, name=name, origin=origin, free=free, lean=lean)
    from kvchat.models.stock.loader import (
        Place,
        load_stock,  # transformers alone takes longer to import than a model
    )

    home = PackedHome.of(origin.root, folder) if origin.root else None
    return load_stock(folder, settings, name=name, place=Place(device, free), home=home)


def _load_lean(
    folder: Path, settings: ModelConfig, *, name: str, origin: Origins, free: int | None, lean: _Lean
) -> LoadedModel:
    device, shape = torch.device("cpu"), lean.shape
    dtype = choose_dtype(settings.dtype, device)
    need = Need(weights_bytes(folder, dtype), shape.kv_numbers_per_token * dtype.itemsize)
    check_memory(name, need, free, device=device, context=settings.context)
    gguf = origin.gguf if origin.gguf and _is_quantised(origin.gguf, folder) else None
    fits = free is None or need.total(settings.context or shape.context) + INTEGER_SHARE * need.weights < free
    weights = choose_weights(settings.weights, device=device, dtype=dtype, gguf=gguf, fits=fits)
    defaults = read_generation(folder)
    home = PackedHome.of(origin.root, folder) if origin.root else None
    network = _lean_network(lean, weights, dtype, gguf, home)
    return LoadedModel(
        name=name,
        architecture=str(lean.config["model_type"]),
        network=network,
        device=device,
        dtype=dtype,
        context=min(settings.context or shape.context, shape.context),
        vocab_size=shape.vocabulary,
        rule=BLOCKS,
        eos_ids=frozenset(id_list(defaults.get("eos_token_id")) or id_list(lean.config.get("eos_token_id"))),
        generation_defaults=defaults,
        weights=replace(weights, mode=network.mode),
        is_exact=True,
    )


def _lean_network(
    lean: _Lean, weights: Weights, dtype: torch.dtype, gguf: Path | None, home: PackedHome | None
) -> LeanNetwork:
    if weights.mode is WeightsMode.NATIVE:
        return load_native(lean.shape, lean.checkpoint, dtype)
    return load_integers(lean.shape, lean.checkpoint, weights.mode, gguf=gguf, home=home)


@dataclass(frozen=True, slots=True)
class _Lean:
    """What our own network needs of a folder."""

    config: dict[str, Any]
    shape: LeanShape
    checkpoint: Checkpoint


def _lean(folder: Path) -> _Lean | None:
    """None unless the folder's model is one that our network surely runs right."""
    try:
        config = read_object(folder / "config.json")
        shape = lean_shape(config) if flash.HAS_CPU_FLASH else None
        found = _Lean(config, shape, SafetensorsCheckpoint(folder)) if shape else None
    except Exception:  # a config or a file that can't be read: transformers says what is wrong with it
        return None
    return found if found and is_of(found.shape, found.checkpoint) else None


def _needs_transformers(settings: ModelConfig) -> bool:
    return settings.trust_remote_code or settings.adapter is not None


def _is_quantised(gguf: Path, folder: Path) -> bool:
    """Whether a GGUF is much smaller than the weights that were made of it."""
    made = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return gguf.exists() and 1.5 * gguf.stat().st_size < made
