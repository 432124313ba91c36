"""Files -> a model on transformers' own modules. The only place that reads weights through transformers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from kvchat.config import ModelConfig
from kvchat.errors import KvchatError, ModelUnavailableError, OutOfMemoryError, UntrustedCodeError
from kvchat.models.device import (
    MIN_CONTEXT,
    Need,
    check_memory,
    choose_dtype,
    is_out_of_memory,
    kv_bytes_per_token,
    memory_need,
)
from kvchat.models.documents import FETCH_AGAIN, first_line
from kvchat.models.generation import checked_generation, read_generation
from kvchat.models.gguf.checkpoint import GgufCheckpoint
from kvchat.models.gguf.families import family_of
from kvchat.models.gguf.parts import read_gguf
from kvchat.models.hush import hushed_transformers
from kvchat.models.loaded import LoadedModel, id_list
from kvchat.models.scaled import ScaledCheckpoint
from kvchat.models.sources.folder import tensor_shapes, weight_files
from kvchat.models.stock import attention, experts
from kvchat.models.stock.adapter import apply_adapter, check_adapter
from kvchat.models.stock.from_gguf import StockGguf
from kvchat.models.stock.network import describe
from kvchat.models.weights.choice import INTEGER_SHARE, choose_weights, why_no_integers
from kvchat.models.weights.integer_linear import use_integers
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.packed import PackedHome

_NUMBERS_A_BYTE = 4
"""Of weights at most: 2 bits each."""
_MAX_BUFFERS = 1 << 27


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is loaded to: a device, and how many bytes are free there, if that is known."""

    device: torch.device
    free: int | None


def load_stock(
    folder: Path,
    settings: ModelConfig,
    *,
    name: str,
    place: Place,
    home: PackedHome | None,
    gguf: Path | None = None,
) -> LoadedModel:
    """The model of a local folder, whatever its family, unless it does not fit where it should go.

    Raises ModelUnavailableError, OutOfMemoryError and UsageError, each with its remedy.
    """
    stated = read_generation(folder)
    with hushed_transformers():
        loaded = _load(folder, settings, name=name, place=place, home=home, gguf=gguf)
    if not stated:  # what older models say in config.json
        return replace(
            loaded,
            generation_defaults=checked_generation(loaded.generation_defaults, folder / "config.json"),
        )
    ends = frozenset(id_list(stated.get("eos_token_id"))) or loaded.eos_ids
    return replace(loaded, generation_defaults=stated, eos_ids=ends)


def _load(
    folder: Path,
    settings: ModelConfig,
    *,
    name: str,
    place: Place,
    home: PackedHome | None,
    gguf: Path | None = None,
) -> LoadedModel:
    device = place.device
    dtype = choose_dtype(settings.dtype, device)
    config = _read_config(folder, name, settings.trust_remote_code)
    adapter = Path(settings.adapter).expanduser() if settings.adapter else None
    if adapter:
        check_adapter(adapter)
    stored = _gguf_tensors(folder, gguf)
    scaled = ScaledCheckpoint.of(folder) if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else None
    if scaled:
        del config.quantization_config
    made = stored or scaled
    need = (
        Need(_num_bytes(made, dtype), kv_bytes_per_token(config, dtype))
        if made
        else memory_need(folder, config, dtype)
    )
    check_memory(name, need, place.free, device=device, context=settings.context)
    taken = need.total(settings.context or MIN_CONTEXT) + INTEGER_SHARE * need.weights
    fits = place.free is None or taken < place.free
    obstacle = why_no_integers(device, dtype) or _why_no_second_form(dtype, fits=fits)
    weights = choose_weights(settings.weights, obstacle=obstacle, is_own=False)
    try:
        if stored:
            model = _filled(config, stored, dtype, name=name)
        else:
            reading = Reading(folder, dtype, name, settings.trust_remote_code, scaled)
            model = _read_weights(config, reading)
        if adapter:
            model = apply_adapter(model, adapter)
        model = model.to(device).eval()
        if weights.mode is not WeightsMode.NATIVE:
            sources = stored.paths if stored else sorted(folder.glob("*.safetensors"))
            use_integers(model, weights.mode, sources=sources, home=None if adapter else home)
        attention.enable(model)
        experts.enable(model)
        described = describe(model, name=name, context=settings.context)
    except KvchatError:
        raise
    except Exception as error:  # a model's own code may raise anything
        if is_out_of_memory(error):
            raise OutOfMemoryError(f"{name} does not fit on {device}", "take a smaller model") from error
        raise ModelUnavailableError(
            f"{name} can't be loaded: {_cause(error)}", f"check the files in {folder}"
        ) from error
    return replace(described, adapter=adapter, weights=weights)


def _gguf_tensors(folder: Path, gguf: Path | None) -> GgufCheckpoint | StockGguf | None:
    """The tensors of the GGUF that a folder without weights was made for."""
    if gguf is None or any(folder.glob("*.safetensors")):
        return None
    header = read_gguf(gguf)
    return GgufCheckpoint.open(gguf) if family_of(header) else StockGguf.of(header)


def _num_bytes(stored: GgufCheckpoint | StockGguf | ScaledCheckpoint, dtype: torch.dtype) -> int:
    return sum(math.prod(stored.shape(name)) for name in stored.names) * dtype.itemsize


def _filled(config: Any, stored: GgufCheckpoint | StockGguf, dtype: torch.dtype, *, name: str) -> Any:
    """The model with all of its weights from a GGUF, one tensor after the other."""
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    persistent = model.state_dict().keys()
    wanted = dict(model.named_parameters())
    wanted |= {key: buffer for key, buffer in model.named_buffers() if key in persistent}
    if lacking := wanted.keys() - stored.names:
        raise _lacks(name, sorted(lacking))
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(stored.get(key))
    return model


def _why_no_second_form(dtype: torch.dtype, *, fits: bool) -> str:
    """Why transformers' modules can't have integers beside their weights."""
    if dtype != torch.bfloat16:
        return "this family's modules have integers beside bfloat16 only"
    return "" if fits else "the integers would not fit beside the weights"


@dataclass(frozen=True, slots=True)
class Reading:
    """What safetensors are read from, as what, and for which model; `scaled` where they are no plain numbers."""

    folder: Path
    dtype: torch.dtype
    name: str
    trusts_code: bool
    scaled: ScaledCheckpoint | None


def _read_weights(config: Any, reading: Reading) -> Any:
    """The model with all of its weights from the files. Raises ModelUnavailableError, naming a tensor that is not there."""
    folder, name, scaled = reading.folder, reading.name, reading.scaled
    if not (
        reading.trusts_code and getattr(config, "auto_map", None)
    ):  # code of its own may not stand a model without memory
        _check_sizes(folder, config, name)
    source = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)] if scaled else AutoModelForCausalLM
    model, report = source.from_pretrained(
        None if scaled else folder,
        config=config,
        dtype=reading.dtype,
        local_files_only=True,
        trust_remote_code=reading.trusts_code,
        state_dict=scaled.as_needed() if scaled else None,
        ignore_mismatched_sizes=True,  # they are in the report, with their sizes
        output_loading_info=True,
    )
    for tensor, stored, called_for in sorted(report["mismatched_keys"]):
        what = f"its tensor {tensor} is {list(stored)}, and config.json calls for {list(called_for)}"
        raise ModelUnavailableError(f"{name} contradicts itself: {what}", FETCH_AGAIN)
    if report["missing_keys"]:
        raise _lacks(name, sorted(report["missing_keys"]))
    _check_extra(model, sorted(report["unexpected_keys"]), name)
    return model


def _check_extra(model: Any, unexpected: Sequence[str], name: str) -> None:
    """Raise ModelUnavailableError for a tensor of a layer that the model has without it: it would be left out silently.

    Parts that transformers does not run, such as layers for drafting or for images, are no layers of the model.
    """
    leaves = {key for key, module in model.named_modules() if key and next(module.children(), None) is None}
    for tensor in unexpected:
        module, _, kind = tensor.rpartition(".")
        if module in leaves and kind != "inv_freq":
            what = f"{name} has the tensor {tensor}, which a {model.config.model_type} model does not"
            raise ModelUnavailableError(what, "take another version of the model, or a GGUF of it")


def _check_sizes(folder: Path, config: Any, name: str) -> None:
    """Refuse a config that calls for far more numbers than the files can hold, before any memory is taken for them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    stored = tensor_shapes(folder)
    most = _NUMBERS_A_BYTE * sum(path.stat().st_size for path in weight_files(folder))
    if sum(parameter.numel() for parameter in model.parameters()) > most:
        raise _lacks(name, sorted({key for key, _ in model.named_parameters()} - stored.keys()))
    if sum(buffer.numel() for buffer in model.buffers()) > max(most, _MAX_BUFFERS):
        raise ModelUnavailableError(f"{name}: its config.json calls for enormous tables", FETCH_AGAIN)


def _lacks(name: str, tensors: Sequence[str]) -> ModelUnavailableError:
    first = tensors[0] if tensors else "most of what its config.json calls for"
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return ModelUnavailableError(f"the weights of {name} lack {first}{more}", FETCH_AGAIN)


def _read_config(folder: Path, name: str, trust_remote_code: bool) -> Any:
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers checks configs with errors of many kinds
        if "trust_remote_code" in str(error):
            raise _untrusted(name) from error
        if "not recognize" in str(error):
            what, remedy = "unknown architecture", "upgrade kvchat, or take another model"
        else:
            what, remedy = "its config.json can't be used", "fetch it again, or take another model"
        raise ModelUnavailableError(f"{name}: {what}: {_cause(error)}", remedy) from error
    if config.model_type not in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        mapped = getattr(config, "auto_map", None) or {}
        if "AutoModelForCausalLM" in mapped and not trust_remote_code:
            raise _untrusted(name)
        if "AutoModelForCausalLM" not in mapped:
            raise ModelUnavailableError(
                f"{name}: the architecture {config.model_type!r} is no text generator that transformers knows",
                "take a causal language model",
            )
    return config


def _cause(error: Exception) -> str:
    return first_line(error.__cause__ or error)


def _untrusted(name: str) -> UntrustedCodeError:
    remedy = f"if you trust its authors, give -m {name} --trust-remote-code"
    return UntrustedCodeError(f"{name} needs code of its own", remedy)
