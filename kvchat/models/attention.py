"""Attention of new tokens over a long arena: old keys need no mask, only the new ones a causal triangle.

transformers builds a [new, old + new] mask for every chunk and repeats the key heads for it. Here the new queries meet
the old keys unmasked, a group's query heads packed as rows of one call, and themselves causally; the two are merged by
their log-sum-exp (flash decoding, Dao et al. 2023). Where that can't be right, it is transformers' own path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

NAME = "kvchat"
MIN_PAST = 1024
"""Fewer keys than this are done sooner by the flash kernel."""
MAX_SCORES_BYTES = 16 * 2**20
"""Larger scores than this leave the processor's cache."""
_SPECIAL = ("position_bias", "softcap", "s_aux")  # what changes scores or their sum
_PLAIN_LAYERS = {
    "full_attention", "sliding_attention", "chunked_attention", "dummy",
    "linear_attention", "conv", "hybrid", "hybrid_sliding",
}  # fmt: skip
"""Others choose among the keys themselves, and hand their choice over as a mask to sdpa by its name alone."""
_HAS_CPU_FLASH = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def enable(model: Any) -> None:
    """Use this module's attention in `model` where it would otherwise run on sdpa on a CPU."""
    pluggable = getattr(model, "_supports_attention_backend", False)
    on_sdpa = getattr(model.config, "_attn_implementation", None) == "sdpa" and model.device.type == "cpu"
    if pluggable and on_sdpa and _HAS_CPU_FLASH and _layer_types(model) <= _PLAIN_LAYERS:
        model.set_attn_implementation(NAME)


def _layer_types(model: Any) -> set[str]:
    return set(get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))[0])


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
    scale = kwargs.get("scaling")
    if new == 1:
        packed, _ = _flash(query.reshape(1, key.shape[1], -1, query.shape[3]), key, value, scale=scale)
        return packed.reshape(1, 1, query.shape[1], query.shape[3]), None
    old = total - new
    groups = query.shape[1] // key.shape[1]
    packed = query.reshape(1, key.shape[1], groups * new, query.shape[3])
    past, past_lse = _over_past(packed, key[:, :, :old], value[:, :, :old], scale=scale)
    past = past.reshape(query.shape)
    past_lse = past_lse.reshape(1, query.shape[1], new)
    own_keys, own_values = (
        states[:, :, old:].repeat_interleave(groups, dim=1) if groups > 1 else states[:, :, old:]
        for states in (key, value)
    )
    own, own_lse = _flash(query, own_keys, own_values, scale=scale, causal=True)
    share = torch.sigmoid(past_lse - own_lse)[..., None]  # exp(past) / (exp(past) + exp(own))
    merged = past.float() * share + own.float() * (1 - share)
    return merged.to(query.dtype).transpose(1, 2).contiguous(), None


def _over_past(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unmasked attention of a few rows over many keys, [1, kv_heads, rows, dim], and its log-sum-exp.

    In bfloat16 the scores are one matrix product with bfloat16 factors and float32 sums: as exact as the flash kernel,
    and about twice as fast for a message's worth of rows, as long as the scores fit into the processor's cache.
    """
    scores_bytes = query.shape[1] * query.shape[2] * key.shape[2] * 4
    if query.dtype != torch.bfloat16 or key.shape[2] < MIN_PAST or scores_bytes > MAX_SCORES_BYTES:
        return _flash(query, key, value, scale=scale)
    shape = (query.shape[1], query.shape[2], key.shape[2])
    scores = _SCRATCH.take("scores", shape, torch.float32)
    keys = _SCRATCH.take("keys", key.shape[1:], torch.float32).copy_(key[0])
    factor = query.shape[3] ** -0.5 if scale is None else scale
    with _bfloat16_factors():
        torch.baddbmm(scores, query[0].float(), keys.transpose(1, 2), beta=0, alpha=factor, out=scores)
    largest = scores.amax(-1)
    torch.softmax(scores, -1, out=scores)
    lse = largest - scores.amax(-1).log()  # the largest share is exp(largest - lse)
    shares = _SCRATCH.take("shares", shape, value.dtype).copy_(scores)
    return torch.bmm(shares, value[0])[None], lse[None]


class _Scratch:
    """Memory that is used again for every layer: fresh pages would cost as much as the arithmetic."""

    def __init__(self) -> None:
        self._flat: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor, valid until the same name is taken again."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            with torch.inference_mode(False):
                flat = self._flat[name] = torch.empty(size, dtype=dtype)
        return flat[:size].view(*shape)


_SCRATCH = _Scratch()  # one thread owns the model


@contextmanager
def _bfloat16_factors() -> Iterator[None]:
    """Let float32 products round their factors to bfloat16, which the factors here are already; sums stay float32."""
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


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


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [1, heads, rows, dim] and its log-sum-exp in float32, [1, heads, rows]."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = attend(query, key, value, is_causal=causal, scale=scale)
    return out, lse


AttentionInterface.register(NAME, arena_attention)
AttentionMaskInterface.register(NAME, arena_mask)
