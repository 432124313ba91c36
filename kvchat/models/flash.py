"""Attention of new tokens over a long arena: old keys need no mask, only the new ones a causal triangle.

The new queries meet the old keys unmasked, a group's query heads packed as rows of one call, and themselves causally;
the two are merged by their log-sum-exp (flash decoding, Dao et al. 2023). Knows tensors alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

MIN_PAST = 1024
"""Fewer keys than this are done sooner by the flash kernel."""
MAX_SCORES_BYTES = 16 * 2**20
"""Larger scores than this leave the processor's cache."""
FEW_ROWS = 32
"""Up to so many rows a product that walks along the keys reads them at the memory's speed."""
HAS_CPU_FLASH = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
"""Whether this torch has the kernel that everything here stands on."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None
) -> torch.Tensor:
    """Causal attention of the last tokens: `query` [1, heads, new, dim] over `key` and `value`
    [1, kv_heads, old + new, dim] -> [1, new, heads, dim]. On a CPU, K and V of one head size.
    """
    new, total = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    if new == 1:
        packed, _ = _over_past(query.reshape(1, key.shape[1], groups, -1), key, value, scale=scale)
        return packed.reshape(1, 1, query.shape[1], -1)
    old = total - new
    own_keys, own_values = (
        states[:, :, old:].repeat_interleave(groups, dim=1) if groups > 1 else states[:, :, old:]
        for states in (key, value)
    )
    own, own_lse = _flash(query, own_keys, own_values, scale=scale, causal=True)
    if not old:
        return own.transpose(1, 2)
    packed = query.reshape(1, key.shape[1], groups * new, query.shape[3])
    past, past_lse = _over_past(packed, key[:, :, :old], value[:, :, :old], scale=scale)
    share = torch.sigmoid(past_lse.reshape(1, query.shape[1], new) - own_lse)[..., None]
    merged = past.reshape(query.shape).float() * share + own.float() * (1 - share)
    return merged.to(query.dtype).transpose(1, 2)


def _over_past(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unmasked attention of a few rows over many keys, [1, kv_heads, rows, dim], and its log-sum-exp.

    In bfloat16 the kernel for whole chunks is slow for a few rows: two matrix products are up to twice as fast, as long
    as the scores fit into the processor's cache.
    """
    rows, past = query.shape[2], key.shape[2]
    scores_bytes = query.shape[1] * rows * past * 4
    if query.dtype != torch.bfloat16 or past < MIN_PAST or scores_bytes > MAX_SCORES_BYTES:
        return _flash(query, key, value, scale=scale)
    factor = query.shape[3] ** -0.5 if scale is None else scale
    if rows <= FEW_ROWS:
        scores = _scores_along_keys(query[0], key[0]).mul_(factor)
    else:
        scores = _exact_scores(query[0], key[0], factor)
    largest = scores.amax(-1)
    torch.softmax(scores, -1, out=scores)
    lse = largest - scores.amax(-1).log()  # the largest share is exp(largest - lse)
    shares = _SCRATCH.take("shares", scores.shape, value.dtype).copy_(scores)
    return torch.bmm(shares, value[0])[None], lse[None]


def _scores_along_keys(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Products of few queries, [kv_heads, rows, keys] in float32, at the speed at which memory yields the keys.

    torch's product of bfloat16 rounds its sums to bfloat16; a second one computes what that lost.
    """
    queries = query.transpose(1, 2)
    rounded = torch.bmm(key, queries)
    lost = torch.baddbmm(rounded, key, queries, beta=-1)
    scores = _SCRATCH.take("scores", (*query.shape[:2], key.shape[1]), torch.float32)
    return scores.copy_(rounded.transpose(1, 2)).add_(lost.transpose(1, 2))


def _exact_scores(query: torch.Tensor, key: torch.Tensor, factor: float) -> torch.Tensor:
    """Products of bfloat16 factors with float32 sums, [kv_heads, rows, keys]: as exact as the flash kernel's."""
    scores = _SCRATCH.take("scores", (*query.shape[:2], key.shape[1]), torch.float32)
    keys = _SCRATCH.take("keys", key.shape, torch.float32).copy_(key)
    with _bfloat16_factors():
        return torch.baddbmm(scores, query.float(), keys.transpose(1, 2), beta=0, alpha=factor, out=scores)


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


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [1, heads, rows, dim] and its log-sum-exp in float32, [1, heads, rows]."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = attend(query, key, value, is_causal=causal, scale=scale)
    return out, lse
