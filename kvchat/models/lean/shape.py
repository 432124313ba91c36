"""Which models are llama-like, and their sizes, read from config.json; what is not surely known is left to transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeGuard

import torch


@dataclass(frozen=True, slots=True)
class LeanFamily:
    """How a family differs from Llama. `fused`: Q, K, V and gate, up are stored as one matrix each."""

    norms_heads: bool = False
    fused: bool = False
    slides: bool = False  # unless its config says otherwise
    skips_rotations: bool = False
    own_head_dim: bool = False  # its head size does not follow from the others


FAMILIES: Mapping[str, LeanFamily] = MappingProxyType(
    {
        "llama": LeanFamily(),
        "smollm3": LeanFamily(skips_rotations=True),
        "mistral": LeanFamily(slides=True),
        "qwen2": LeanFamily(),
        "qwen3": LeanFamily(norms_heads=True, own_head_dim=True),
        "phi3": LeanFamily(fused=True),
    }
)
"""By transformers' name."""

_NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)

_LLAMA3 = ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "factor")


@dataclass(frozen=True, slots=True)
class LeanShape:
    """Sizes of a llama-like model. `rotates` says for each layer whether it rotates its heads by position."""

    family: LeanFamily
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    norm_epsilon: float
    rotates: tuple[bool, ...]
    rope: Mapping[str, Any]
    is_tied: bool | None

    @property
    def kv_numbers_per_token(self) -> int:
        """How many numbers K and V of one token are, in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def inverse_frequencies(self) -> torch.Tensor:
        """Angle a position of each pair of a head's numbers, float32 [head_dim / 2] (RoPE, Su et al. 2021)."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        frequencies: torch.Tensor = 1.0 / (self.rope["rope_theta"] ** exponents)
        scaled = self.rope["rope_type"] == "llama3"
        return _llama3(frequencies, self.rope) if scaled else frequencies


def lean_shape(config: Mapping[str, Any]) -> LeanShape | None:
    """The sizes of a model that this room can run; None for every other, and where config.json leaves a doubt."""
    family = FAMILIES.get(str(config.get("model_type")))
    rope = _rope(config)
    if family is None or rope is None or not all(map(_is_size, map(config.get, _NEEDED))):
        return None
    epsilon, layers = config.get("rms_norm_eps"), config["num_hidden_layers"]
    head_dim = config.get("head_dim") or (
        None if family.own_head_dim else config["hidden_size"] // config["num_attention_heads"]
    )
    rotates = _rotates(config, family, layers)
    if (
        not _is_positive(epsilon)
        or not _is_size(head_dim)
        or head_dim % 2
        or config["num_attention_heads"] % config["num_key_value_heads"]
        or rotates is None
        or not _is_plain(config, family)
    ):
        return None
    return LeanShape(
        family=family,
        hidden=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        layers=layers,
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=head_dim,
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        norm_epsilon=epsilon,
        rotates=rotates,
        rope=rope,
        is_tied=config.get("tie_word_embeddings"),
    )


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_plain(config: Mapping[str, Any], family: LeanFamily) -> bool:
    """Full attention in every layer, SiLU gates, plain stored weights, no code of its own."""
    layer_types = config.get("layer_types") or ["full_attention"]
    window = config.get("sliding_window", 0 if not family.slides else -1)
    slides = bool(window) and config.get("use_sliding_window", True)
    return (
        set(layer_types) == {"full_attention"}
        and not slides
        and config.get("hidden_act", "silu") == "silu"
        and "quantization_config" not in config
        and "auto_map" not in config
        and not config.get("use_bidirectional_attention")
    )


def _rope(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rotary parameters, by either of transformers' spellings; None for a scaling that is not done here."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta"))
    rope.setdefault("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    known = rope["rope_type"] in ("default", "llama3") and partial == 1.0
    needed = ("rope_theta", *(_LLAMA3 if rope["rope_type"] == "llama3" else ()))
    return rope if known and all(_is_positive(rope.get(name)) for name in needed) else None


def _rotates(config: Mapping[str, Any], family: LeanFamily, layers: int) -> tuple[bool, ...] | None:
    if not family.skips_rotations:
        return (True,) * layers
    stated = config.get("no_rope_layers")  # 1 where a layer does rotate
    return tuple(bool(flag) for flag in stated) if stated and len(stated) == layers else None


def _llama3(frequencies: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """Llama 3's scaling: low frequencies divided by a factor, high ones as they are, a smooth step between."""
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    wavelengths = 2 * math.pi / frequencies
    smooth = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    scaled: torch.Tensor = (1 - smooth) * frequencies / rope["factor"] + smooth * frequencies
    return scaled
