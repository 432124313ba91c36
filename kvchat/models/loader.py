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
    fitting_context,
    free_bytes,
)
from kvchat.models.documents import read_object
from kvchat.models.foreign import check_weights
from kvchat.models.generation import read_generation
from kvchat.models.gguf.checkpoint import GgufCheckpoint
from kvchat.models.lean import flash
from kvchat.models.lean.loader import Form, is_of, lean_size, load_lean
from kvchat.models.lean.network import LeanNetwork
from kvchat.models.lean.shape import LeanShape, lean_shape
from kvchat.models.loaded import LoadedModel, id_list
from kvchat.models.progress import Progress, silent
from kvchat.models.reuse import BLOCKS
from kvchat.models.scaled import ScaledCheckpoint
from kvchat.models.weights.choice import choose_weights, why_no_integers
from kvchat.models.weights.making import has_integers
from kvchat.models.weights.mode import Weights, WeightsMode
from kvchat.models.weights.packed import PackedHome

KEPT_SHARE = 8
"""What integers stand for is kept beside them where so many times of it are free."""


@dataclass(frozen=True, slots=True)
class Origins:
    """Where a folder comes from: the GGUF whose weights are used as they lie there, and the models' `root`, under which
    integers that are made are kept. `progress` is told how far that is."""

    gguf: Path | None = None
    root: Path | None = None
    progress: Progress = silent


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
    check_weights(folder, name)
    device = choose_device(settings.device)
    free = free_bytes(device)
    lean = _lean(folder, origin.gguf) if device.type == "cpu" and not _needs_transformers(settings) else None
    if lean is not None:
        return _load_lean(folder, settings, name=name, origin=origin, free=free, lean=lean)
    from kvchat.models.stock.loader import (
        Place,
        load_stock,  # transformers alone takes longer to import than a model
    )

    home = PackedHome.of(origin.root, folder) if origin.root else None
    return load_stock(folder, settings, name=name, place=Place(device, free), home=home, gguf=origin.gguf)


def _load_lean(
    folder: Path, settings: ModelConfig, *, name: str, origin: Origins, free: int | None, lean: _Lean
) -> LoadedModel:
    device, shape, checkpoint = torch.device("cpu"), lean.shape, lean.checkpoint
    dtype = choose_dtype(settings.dtype, device)
    weights = choose_weights(
        settings.weights, obstacle=why_no_integers(device, dtype), is_own=has_integers(checkpoint)
    )
    size = lean_size(shape, checkpoint, weights.mode, dtype)
    need = Need(size.held, shape.kv_numbers_per_token * dtype.itemsize)
    check_memory(name, need, free, device=device, context=settings.context)
    keeps = weights.mode is not WeightsMode.NATIVE and (free is None or KEPT_SHARE * size.values <= free)
    home = PackedHome.of(origin.root, folder) if origin.root else None
    form = Form(dtype, weights.mode, keeps=keeps)
    network = load_lean(shape, checkpoint, form, home=home, progress=origin.progress)
    defaults = read_generation(folder)
    context = settings.context or fitting_context(need.plus(size.values if keeps else 0), free)
    return LoadedModel(
        name=name,
        architecture=str(lean.config["model_type"]),
        network=network,
        device=device,
        dtype=dtype,
        context=min(context, shape.context),
        vocab_size=shape.vocabulary,
        rule=BLOCKS,
        eos_ids=frozenset(id_list(defaults.get("eos_token_id")) or id_list(lean.config.get("eos_token_id"))),
        generation_defaults=defaults,
        weights=_as_held(weights, network, keeps=keeps, dtype=dtype),
        is_exact=True,
    )


def _as_held(weights: Weights, network: LeanNetwork, *, keeps: bool, dtype: torch.dtype) -> Weights:
    """What came of a choice: not every model has matrices that the kernel takes."""
    if weights.mode is WeightsMode.NATIVE or network.mode is WeightsMode.NATIVE:
        return replace(weights, mode=network.mode)
    kept = f"kept as {str(dtype).removeprefix('torch.')} too for prompts, there is memory for it"
    prompts = kept if keeps else "and prompts are computed from them: no second copy"
    return replace(weights, mode=network.mode, why=f"{weights.why}, {prompts}")


@dataclass(frozen=True, slots=True)
class _Lean:
    """What our own network needs of a folder."""

    config: dict[str, Any]
    shape: LeanShape
    checkpoint: Checkpoint


def _lean(folder: Path, gguf: Path | None) -> _Lean | None:
    """None unless the folder's model is one that our network surely runs right."""
    try:
        config = read_object(folder / "config.json")
        plain = {key: item for key, item in config.items() if key != "quantization_config"}  # is read here
        shape = lean_shape(plain) if flash.HAS_CPU_FLASH else None
        found = _Lean(config, shape, checkpoint_of(folder, gguf)) if shape else None
    except Exception:  # a config or a file that can't be read: transformers says what is wrong with it
        return None
    return found if found and is_of(found.shape, found.checkpoint) else None


def checkpoint_of(folder: Path, gguf: Path | None) -> Checkpoint:
    """A model's tensors: the folder's own, or those of the GGUF that it was made for."""
    if gguf is not None and not any(folder.glob("*.safetensors")):
        return GgufCheckpoint.open(gguf)
    return ScaledCheckpoint.of(folder) or SafetensorsCheckpoint(folder)


def _needs_transformers(settings: ModelConfig) -> bool:
    return settings.trust_remote_code or settings.adapter is not None
