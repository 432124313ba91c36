"""Attention of new tokens over a long arena: old keys need no mask, only the new ones a causal triangle.

A group's query heads are packed as rows of one call. Given tokens are computed in tiles, with calls whose sizes depend on a
tile's place alone: however a library cuts its sums by them, it cuts them alike. Else many scores in bfloat16 take two matrix
products, and fewer meet the old keys unmasked and themselves causally, merged by log-sum-exp (flash decoding, Dao et al.
2023). Knows tensors alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from kvchat.models.lean.attention import (
    FEW_ROWS,
    KEYS_AT_ONCE,
    MIN_SCORES_OF_MANY,
    MIN_SPLIT,
    Attention,
)
from kvchat.models.lean.products import by_products, by_rounded_products, packed, unpacked
from kvchat.models.weights.floats import is_cut_by_size

MIN_PART = 512
"""One token's attention over so many keys is split into parts of no fewer than these."""
_FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""Gives attention [1, heads, rows, dim] and its log-sum-exp in float32, [1, heads, rows]."""
HAS_CPU_FLASH = _FLASH is not None
"""Whether this torch has the kernel that everything here stands on."""


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""A function of query [new, heads, dim] and of key and value, [1, kv_heads, reach, dim], whose result has the numbers of
[new, heads, dim] in order. Where the attention `is_flat` key and value are [kv_heads, reach, dim]."""


def kernel(task: Attention, reach: int) -> Kernel:
    """What computes it with `reach` keys, `total` of them held."""
    if task.is_given:
        return partial(_by_tiles, task, list(_tiles(task)))
    if task.is_apart and task.new > 1:
        return partial(_one_by_one, task)
    if task.is_by_products:
        corner = task.corner(reach)
        if task.exact or task.rows > FEW_ROWS:
            return partial(by_products, task, corner)
        return partial(by_rounded_products, task, corner.t()[:, None].to(task.dtype))
    if task.new > 1 and task.rows * task.total >= MIN_SCORES_OF_MANY:
        return partial(_by_merging, task)
    if task.new > 1:
        return partial(_masked, task, task.mask())
    return partial(_split if task.exact and task.total >= MIN_SPLIT else _alone, task)


_Tile = tuple[slice, int, Kernel]
"""Where a tile's tokens are among all from its forward's first tile on, how many keys it takes, and what computes it."""


def _tiles(task: Attention) -> Iterator[_Tile]:
    size = task.tile
    begin, end = task.old // size * size, -(-task.total // size) * size
    is_by_products = task.dtype == torch.float32  # else the flash kernel is twice as fast
    mask = None if is_by_products else replace(task, new=size, total=end).mask()
    for start in range(begin, end, size):
        tile = replace(task, new=size, total=start + size)
        some = slice(start - begin, start - begin + size)
        if mask is None:
            yield some, tile.reach, partial(by_products, tile, tile.corner(tile.reach))
        else:
            yield some, tile.total, partial(_masked, tile, mask[:, end - tile.total :])


def _by_tiles(
    task: Attention, tiles: Sequence[_Tile], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Given tokens, each in its tile, with others or with zeros in the others' places."""
    before, behind = task.old % task.tile, -task.total % task.tile
    rows = pad(query, (0, 0, 0, 0, before, behind)) if before or behind else query
    found = [
        compute(rows[some], key[..., :reach, :], value[..., :reach, :]) for some, reach, compute in tiles
    ]
    return torch.cat(found)[before : before + task.new]


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None, exact: bool = True
) -> torch.Tensor:
    """`Attention` of `query` [1, heads, new, dim] over `key` and `value` [1, kv_heads, old + new, dim] ->
    [1, new, heads, dim]. On a CPU, K and V of one head size."""
    heads, new, dim = query.shape[1:]
    kv_heads, total = key.shape[1:3]
    attention = Attention(heads, kv_heads, dim, new, total, query.dtype, scale, exact)
    if attention.is_flat:
        key, value = key[0], value[0]
    out = kernel(attention, total)(query[0].transpose(0, 1), key, value)
    return out.reshape(1, new, heads, dim)


def _alone(task: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One token over few keys: the flash kernel as it is."""
    return scaled_dot_product_attention(
        query.view(1, task.kv_heads, -1, task.dim), key, value, scale=task.scale
    )


def _split(task: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One token over many keys, in parts, so that all threads get as many."""
    kv_heads, total, threads = task.kv_heads, task.total, torch.get_num_threads()
    parts = max(2, min(math.lcm(kv_heads, threads) // kv_heads, total // MIN_PART))
    size = total // parts
    end = size * parts
    query = query.view(1, kv_heads, -1, task.dim)
    split_keys, split_values = (
        states[0, :, :end].view(kv_heads, parts, size, -1).transpose(0, 1) for states in (key, value)
    )
    out, lse = _FLASH(query.expand(parts, -1, -1, -1), split_keys, split_values, scale=task.scale)
    if end < total:
        rest, rest_lse = _FLASH(query, key[:, :, end:], value[:, :, end:], scale=task.scale)
        out, lse = torch.cat([out, rest]), torch.cat([lse, rest_lse])
    shares = lse.softmax(0)[..., None]
    merged: torch.Tensor = (out.float() * shares).sum(0).to(query.dtype)
    return merged


def _one_by_one(task: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Each token as if it came alone. The products of a few rows over one number of keys do not depend on one another
    (tested) unless they are cut by size; the flash kernel's do."""
    first = replace(task, new=1, total=task.old + 1, is_apart=False)
    last = replace(first, total=task.total)
    are_apart = first.is_by_products and last.is_by_products and not is_cut_by_size(task.dtype)
    step = max(1, FEW_ROWS // task.groups) if are_apart else 1
    pieces, end = [], 0
    while (start := end) < task.new:
        page_end = -(-(task.old + start + 1) // KEYS_AT_ONCE) * KEYS_AT_ONCE - task.old
        end = min(start + step, task.new, page_end)
        part = replace(task, new=end - start, total=task.old + end, is_apart=False)
        reach = min(part.reach, key.shape[2])
        held = [states[0, :, :reach] if part.is_flat else states[:, :, :reach] for states in (key, value)]
        attended = kernel(part, reach)(query[start:end], *held)
        pieces.append(attended.reshape(end - start, -1))
    return torch.cat(pieces)


def _masked(
    task: Attention, mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Some tokens over few keys: one call of the flash kernel."""
    rows = packed(task, query)[None]
    out, _ = _FLASH(rows, key, value, attn_mask=mask[None, None], scale=task.scale)
    return unpacked(task, out.reshape(rows.shape[1:]))


def _by_merging(task: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The flash kernel twice: over the old keys without a mask, over the new ones causally; merged by log-sum-exp."""
    query = query.transpose(0, 1)[None]
    old, groups = task.old, task.groups
    own_keys, own_values = (
        states[:, :, old:].repeat_interleave(groups, dim=1) if groups > 1 else states[:, :, old:]
        for states in (key, value)
    )
    own, own_lse = _FLASH(query, own_keys, own_values, is_causal=True, scale=task.scale)
    if not old:
        return own.transpose(1, 2)  # type: ignore[no-any-return]
    packed = query.reshape(1, task.kv_heads, task.rows, task.dim)
    past, past_lse = _FLASH(packed, key[:, :, :old], value[:, :, :old], scale=task.scale)
    share = torch.sigmoid(past_lse.reshape(own_lse.shape) - own_lse)[..., None]
    merged: torch.Tensor = own.float().lerp_(past.reshape(query.shape).float(), share).to(query.dtype)
    return merged.transpose(1, 2)
