"""Attention of new tokens over a long arena: old keys need no mask, only the new ones a causal triangle.

A group's query heads are packed as rows of one call. In bfloat16 that is two matrix products; else the new queries meet
the old keys unmasked and themselves causally, merged by log-sum-exp (flash decoding, Dao et al. 2023). Knows tensors alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

FEW_ROWS = 32
"""Up to so many rows a product that walks along the keys reads them at the memory's speed."""
MIN_SCORES_OF_FEW = 6 * 2**10
MIN_ROUNDED_SCORES_OF_FEW = 3 * 2**10
MIN_SCORES_OF_MANY = 24 * 2**10
"""Fewer scores a head than this are done sooner by the flash kernel. Measured, as is what follows."""
MIN_SPLIT = 4096
MIN_PART = 512
"""One token's attention over so many keys is split into parts of no fewer than these."""
MAX_SCORES_BYTES = 48 * 2**20
"""Heads whose scores take more than this together are done one after another."""
HAS_CPU_FLASH = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
"""Whether this torch has the kernel that everything here stands on."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None, exact: bool = True
) -> torch.Tensor:
    """Causal attention of the last tokens: `query` [1, heads, new, dim] over `key` and `value`
    [1, kv_heads, old + new, dim] -> [1, new, heads, dim]. On a CPU, K and V of one head size.

    Without `exact` a few tokens' scores over many keys in bfloat16 may be rounded to bfloat16, as transformers' eager
    attention rounds them.
    """
    heads, new, dim = query.shape[1:]
    kv_heads, total = key.shape[1:3]
    rows = heads // kv_heads * new  # the query heads of a group are rows of one product
    if new == 1 and exact and total >= MIN_SPLIT:
        return _split(query.view(1, kv_heads, rows, dim), key, value, scale=scale).reshape(1, 1, heads, dim)
    least = _least_of_few(exact) if rows <= FEW_ROWS else MIN_SCORES_OF_MANY
    if query.dtype == torch.bfloat16 and rows * total >= least:
        packed = query.reshape(kv_heads, rows, dim)
        manner = _Manner(new, dim**-0.5 if scale is None else scale, exact)
        out = _by_products(packed, key[0], value[0], manner)
        return out.view(1, heads, new, dim).transpose(1, 2)
    if new == 1:
        packed, _ = _flash(query.reshape(1, kv_heads, rows, dim), key, value, scale=scale)
        return packed.reshape(1, 1, heads, dim)
    return _by_merging(query, key, value, scale=scale)


def _split(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None
) -> torch.Tensor:
    """Attention of one token, [1, kv_heads, groups, dim], over keys in parts, so that all threads get as many."""
    kv_heads, total, threads = key.shape[1], key.shape[2], torch.get_num_threads()
    parts = max(2, min(math.lcm(kv_heads, threads) // kv_heads, total // MIN_PART))
    size = total // parts
    end = size * parts
    split_keys, split_values = (
        states[0, :, :end].view(kv_heads, parts, size, -1).transpose(0, 1) for states in (key, value)
    )
    out, lse = _flash(query.expand(parts, -1, -1, -1), split_keys, split_values, scale=scale)
    if end < total:
        rest, rest_lse = _flash(query, key[:, :, end:], value[:, :, end:], scale=scale)
        out, lse = torch.cat([out, rest]), torch.cat([lse, rest_lse])
    shares = lse.softmax(0)[..., None]
    return (out.float() * shares).sum(0).to(query.dtype)


def attend_one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None, exact: bool = True
) -> torch.Tensor:
    """The same as `attend`, with the very rounding that a call for each new token alone has.

    The products of a few rows do not depend on one another (tested); the flash kernel's do.
    """
    groups, new, total = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    old = total - new
    is_enough = groups * (old + 1) >= _least_of_few(exact) and (total < MIN_SPLIT or not exact)
    by_products = query.dtype == torch.bfloat16 and is_enough
    step = max(1, FEW_ROWS // groups) if by_products else 1
    pieces = []
    for start in range(0, new, step):
        end = min(start + step, new)
        held = key[:, :, : old + end], value[:, :, : old + end]
        pieces.append(attend(query[:, :, start:end], *held, scale=scale, exact=exact))
    return torch.cat(pieces, dim=1)


def _least_of_few(exact: bool) -> int:
    return MIN_SCORES_OF_FEW if exact else MIN_ROUNDED_SCORES_OF_FEW


def _by_merging(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None
) -> torch.Tensor:
    """The flash kernel twice: over the old keys without a mask, over the new ones causally; merged by log-sum-exp."""
    heads, new, dim = query.shape[1:]
    kv_heads, old = key.shape[1], key.shape[2] - new
    groups = heads // kv_heads
    own_keys, own_values = (
        states[:, :, old:].repeat_interleave(groups, dim=1) if groups > 1 else states[:, :, old:]
        for states in (key, value)
    )
    own, own_lse = _flash(query, own_keys, own_values, scale=scale, causal=True)
    if not old:
        return own.transpose(1, 2)
    packed = query.reshape(1, kv_heads, groups * new, dim)
    past, past_lse = _flash(packed, key[:, :, :old], value[:, :, :old], scale=scale)
    share = torch.sigmoid(past_lse.reshape(1, heads, new) - own_lse)[..., None]
    merged = own.float().lerp_(past.reshape(query.shape).float(), share)
    return merged.to(query.dtype).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _Manner:
    """Rows are `new` tokens' of each query head of a group; scores are multiplied by `factor`."""

    new: int
    factor: float
    exact: bool


def _by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, manner: _Manner
) -> torch.Tensor:
    """Attention of bfloat16 [kv_heads, rows, dim] as two matrix products with the scores between them in memory.

    As exact as the flash kernel, and up to twice as fast: that one is slow for a few rows, and for a chunk's too.
    """
    if not manner.exact and query.shape[1] <= FEW_ROWS:
        return _by_rounded_products(query, key, value, manner)
    kv_heads, rows, total, new = query.shape[0], query.shape[1], key.shape[1], manner.new
    at_once = max(1, min(kv_heads, MAX_SCORES_BYTES // (rows * total * 4)))
    out = torch.empty_like(query)
    for head in range(0, kv_heads, at_once):
        some = slice(head, head + at_once)
        few = rows <= FEW_ROWS
        scores = (_scores_along_keys if few else _scores)(query[some], key[some], manner)
        if new > 1:
            scores.unflatten(1, (-1, new))[..., total - new :].add_(_triangle(new))  # type: ignore[no-untyped-call]
        torch.softmax(scores, -1, out=scores)
        shares = _SCRATCH.take("shares", scores.shape, value.dtype).copy_(scores)
        torch.bmm(shares, value[some], out=out[some])
    return out


def _by_rounded_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, manner: _Manner
) -> torch.Tensor:
    """The same for few rows, whose scores are rounded to bfloat16; in as few operations as can be."""
    products = torch.bmm(key, query.transpose(1, 2)).transpose(1, 2)
    scores = products.to(torch.float32, memory_format=torch.contiguous_format).mul_(manner.factor)
    if manner.new > 1:
        own = scores.unflatten(1, (-1, manner.new))[..., key.shape[1] - manner.new :]  # type: ignore[no-untyped-call]
        own.add_(_triangle(manner.new))
    return torch.bmm(torch.softmax(scores, -1).to(value.dtype), value)


def _scores_along_keys(query: torch.Tensor, key: torch.Tensor, manner: _Manner) -> torch.Tensor:
    """Products of few queries, [kv_heads, rows, keys] in float32, at the speed at which memory yields the keys.

    torch's product of bfloat16 rounds its sums to bfloat16; a second one computes what that lost.
    """
    queries = query.transpose(1, 2)
    rounded = torch.bmm(key, queries)
    scores = _SCRATCH.take("scores", (*query.shape[:2], key.shape[1]), torch.float32)
    lost = torch.baddbmm(rounded, key, queries, beta=-1)
    return scores.copy_(rounded.transpose(1, 2)).add_(lost.transpose(1, 2)).mul_(manner.factor)


def _scores(query: torch.Tensor, key: torch.Tensor, manner: _Manner) -> torch.Tensor:
    """Products of bfloat16 factors with float32 sums, [kv_heads, rows, keys]."""
    scores = _SCRATCH.take("scores", (*query.shape[:2], key.shape[1]), torch.float32)
    keys = _SCRATCH.take("keys", key.shape, torch.float32).copy_(key)
    with _bfloat16_factors():
        return torch.baddbmm(
            scores, query.float(), keys.transpose(1, 2), beta=0, alpha=manner.factor, out=scores
        )


def _triangle(new: int) -> torch.Tensor:
    """What hides each new token's successors from it, [new, new]."""
    return torch.full((new, new), -torch.inf).triu_(1)


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
