"""How a GGUF rotates its heads by position, in the terms of transformers' `rope_parameters`; knows no architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import shown
from kvchat.models.gguf.keys import ELSEWHERE, Keys

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FREQUENCIES = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_LLAMA3_ORIGINAL = 8192


def rope_parameters(keys: Keys, *, head_dim: int, context: int) -> dict[str, Any]:
    """What the file says of its rotations. Raises ModelUnavailableError for a scaling that is unknown."""
    base = keys.number("rope.freq_base", 10000.0)
    rotated = keys.whole("rope.dimension_count", head_dim)
    if rotated > head_dim or rotated % 2:
        raise _unknown(keys, f"{rotated} numbers of heads of {head_dim}")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if rotated != head_dim:
        parameters["partial_rotary_factor"] = rotated / head_dim
    if keys.has_tensor(_LONG):
        return parameters | _long(keys, context)
    if keys.has_tensor(_FREQUENCIES):
        return parameters | _llama3(keys, base, rotated)
    return parameters | _scaled(keys, context)


def _scaled(keys: Keys, context: int) -> dict[str, Any]:
    factor = keys.number("rope.scaling.factor", 0.0) or keys.number("rope.scale_linear", 0.0)
    kind = keys.value("rope.scaling.type", "linear" if factor else "none")
    original = keys.whole("rope.scaling.original_context_length", context)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn" or factor < 1:
        raise _unknown(keys, shown(kind))
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if keys.value(f"rope.scaling.{theirs}") is not None:
            scaling[ours] = keys.number(f"rope.scaling.{theirs}")
    keys.expect("rope.scaling.attn_factor", 1.0)
    keys.expect("rope.scaling.yarn_attn_factor", 1.0)
    keys.expect("rope.scaling.yarn_ext_factor", 1.0, -1.0)
    multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    return scaling | ({"mscale": 1.0, "mscale_all_dim": multiplier} if multiplier else {})


def _long(keys: Keys, context: int) -> dict[str, Any]:
    """Phi-3's: one set of factors up to the original context, another behind it."""
    original = keys.whole("rope.scaling.original_context_length")
    keys.expect("rope.scaling.type", "longrope", "none")
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    return {
        "rope_type": "longrope",
        "short_factor": _values(keys, _SHORT).tolist(),
        "long_factor": _values(keys, _LONG).tolist(),
        "original_max_position_embeddings": original,
        "factor": max(1.0, context / original),
        "attention_factor": attention,
    }


def _llama3(keys: Keys, base: float, rotated: int) -> dict[str, Any]:
    """Llama 3's scaling, which a GGUF carries only as the factors it leads to: the setting is found that leads there."""
    import numpy as np

    keys.expect("rope.scaling.type", "none", "linear")
    keys.expect("rope.scaling.factor", 1.0)
    keys.value("rope.scaling.original_context_length")
    factors = _values(keys, _FREQUENCIES)
    factor = float(factors.max(initial=1.0))
    wavelengths = 2 * np.pi * base ** (np.arange(0, rotated, 2) / rotated)
    if factors.shape == wavelengths.shape:
        for original in _originals(factors, wavelengths, factor):
            if np.allclose(factors, _llama3_factors(wavelengths, factor, original), rtol=1e-3):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": original,
                }
    raise _unknown(keys, _FREQUENCIES)


def _llama3_factors(wavelengths: NDArray[Any], factor: float, original: int) -> NDArray[Any]:
    import numpy as np

    smooth = np.clip((original / wavelengths - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _originals(factors: NDArray[Any], wavelengths: NDArray[Any], factor: float) -> list[int]:
    """Contexts that the model may have been trained on first, as the factors between the extremes tell."""
    between = (factors > 1.001) & (factors < factor * 0.999)
    smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    told = wavelengths[between] * (3.0 * smooth + 1.0)
    return [_LLAMA3_ORIGINAL, *(round(float(value)) for value in told)]


def _values(keys: Keys, name: str) -> NDArray[np.float64]:
    import numpy as np

    from kvchat.models.gguf.values import tensor_values

    tensor = keys.gguf.tensors[name]
    data = np.memmap(tensor.path, dtype=np.uint8, mode="r")
    return np.asarray(tensor_values(data, tensor), dtype=np.float64).ravel()


def _unknown(keys: Keys, what: str) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"{keys.gguf.path} scales its positions by {what}, which is unknown", ELSEWHERE
    )
