"""Files -> a model on transformers' own modules. The only place that reads weights through transformers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from kvchat.config import ModelConfig
from kvchat.errors import KvchatError, ModelUnavailableError, OutOfMemoryError, UntrustedCodeError
from kvchat.models import attention
from kvchat.models.adapter import apply_adapter, check_adapter
from kvchat.models.device import MIN_CONTEXT, check_memory, choose_dtype, is_out_of_memory, memory_need
from kvchat.models.integer_linear import use_integers
from kvchat.models.loaded import LoadedModel
from kvchat.models.packed import PackedHome
from kvchat.models.quantize import INTEGER_SHARE, choose_weights
from kvchat.models.stock import describe
from kvchat.models.weights import WeightsMode


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is loaded to: a device, and how many bytes are free there, if that is known."""

    device: torch.device
    free: int | None


def load_stock(
    folder: Path, settings: ModelConfig, *, name: str, place: Place, home: PackedHome | None
) -> LoadedModel:
    """The model of a local folder, whatever its family, unless it does not fit where it should go.

    Raises ModelUnavailableError, OutOfMemoryError and UsageError, each with its remedy.
    """
    _quiet_transformers()
    device = place.device
    dtype = choose_dtype(settings.dtype, device)
    config = _read_config(folder, name, settings.trust_remote_code)
    adapter = Path(settings.adapter).expanduser() if settings.adapter else None
    if adapter:
        check_adapter(adapter)
    need = memory_need(folder, config, dtype)
    check_memory(name, need, place.free, device=device, context=settings.context)
    taken = need.total(settings.context or MIN_CONTEXT) + INTEGER_SHARE * need.weights
    fits = place.free is None or taken < place.free
    weights = choose_weights(settings.weights, device=device, dtype=dtype, gguf=None, fits=fits)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=settings.trust_remote_code,
        )
        if adapter:
            model = apply_adapter(model, adapter)
        model = model.to(device).eval()
        if weights.mode is not WeightsMode.NATIVE:
            sources = sorted(folder.glob("*.safetensors"))
            use_integers(model, weights.mode, sources=sources, home=None if adapter else home)
    except KvchatError:
        raise
    except Exception as error:  # a model's own code may raise anything
        if is_out_of_memory(error):
            raise OutOfMemoryError(f"{name} does not fit on {device}", "take a smaller model") from error
        raise ModelUnavailableError(
            f"{name} can't be loaded: {_first_line(error)}", f"check the files in {folder}"
        ) from error
    attention.enable(model)
    return replace(describe(model, name=name, context=settings.context), adapter=adapter, weights=weights)


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
        raise ModelUnavailableError(f"{name}: {what}: {_first_line(error)}", remedy) from error
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


def _untrusted(name: str) -> UntrustedCodeError:
    remedy = f"if you trust its authors, give -m {name} --trust-remote-code"
    return UntrustedCodeError(f"{name} needs code of its own", remedy)


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def _quiet_transformers() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"transformers\..*")
