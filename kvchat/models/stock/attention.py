"""Our attention over the arena, plugged into transformers' models where they would run on sdpa on a CPU.

transformers builds a [new, old + new] mask for every chunk and repeats the key heads for it. Here new tokens attend
without one (flash.py); where that can't be right, it is transformers' own path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from kvchat.models.lean import flash
from kvchat.models.reuse import layer_types_of

NAME = "kvchat"
_SPECIAL = ("position_bias", "softcap", "s_aux")  # what changes scores or their sum
_PLAIN_LAYERS = {
    "full_attention", "sliding_attention", "chunked_attention", "dummy",
    "linear_attention", "conv", "hybrid", "hybrid_sliding",
}  # fmt: skip
"""Others choose among the keys themselves, and hand their choice over as a mask to sdpa by its name alone."""


def enable(model: Any) -> None:
    """Use this module's attention in `model` where it would otherwise run on sdpa on a CPU."""
    pluggable = getattr(model, "_supports_attention_backend", False)
    on_sdpa = getattr(model.config, "_attn_implementation", None) == "sdpa" and model.device.type == "cpu"
    layer_types = layer_types_of(model.config.get_text_config(decoder=True))
    if pluggable and on_sdpa and flash.HAS_CPU_FLASH and layer_types and layer_types <= _PLAIN_LAYERS:
        model.set_attn_implementation(NAME)


def arena_mask(*args: Any, mask_function: Callable[..., Any] = causal_mask_function, **kwargs: Any) -> Any:
    """No mask at all for a plain causal layer without padding; transformers' own mask for every other."""
    may_skip = kwargs.get("allow_is_causal_skip", True) and kwargs.get("kv_offset", 0) == 0
    if mask_function is causal_mask_function and kwargs.get("attention_mask") is None and may_skip:
        return None
    return sdpa_mask(*args, mask_function=mask_function, **kwargs)


def arena_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`query` [1, heads, new, dim] over `key` and `value` [1, kv_heads, old + new, dim] -> [1, new, heads, dim]."""
    new, total = query.shape[2], key.shape[2]
    if attention_mask is not None or new == total:
        return _stock(module, query, key, value, attention_mask, **kwargs)
    if not _mergeable(query, key, value, kwargs):
        visible = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(total - new)
        return _stock(module, query, key, value, visible[None, None], **kwargs)
    return flash.attend(query, key, value, scale=kwargs.get("scaling")).contiguous(), None


def _stock(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    out, _ = sdpa_attention_forward(*args, **kwargs)
    return out, None


def _mergeable(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kwargs: dict[str, Any]) -> bool:
    return (
        query.shape[0] == 1
        and key.shape[3] == value.shape[3]
        and kwargs.get("is_causal") is not False
        and all(kwargs.get(name) is None for name in _SPECIAL)
    )


AttentionInterface.register(NAME, arena_attention)
AttentionMaskInterface.register(NAME, arena_mask)
