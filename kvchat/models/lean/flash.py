"""Attention of new tokens over a long arena: old keys need no mask, only the new ones a causal triangle.

A group's query heads are packed as rows of one call. Given tokens take two matrix products, in which what a row gets does
not depend on how many there are. Else many scores in bfloat16 do too, and fewer meet the old keys unmasked and themselves
causally, merged by log-sum-exp (flash decoding, Dao et al. 2023). Knows tensors alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

FEW_ROWS = 32
"""Up to so many rows a product that walks along the keys reads them at the memory's speed."""
MIN_SCORES_OF_FEW = 6 * 2**10
MIN_ROUNDED_SCORES_OF_FEW = 3 * 2**10
MIN_SCORES_OF_MANY = 20 * 2**10
"""Fewer scores a head than this are done sooner by the flash kernel. Measured, as is what follows."""
MIN_SPLIT = 4096
MIN_PART = 512
"""One token's attention over so many keys is split into parts of no fewer than these."""
MAX_SCORES_BYTES = 48 * 2**20
"""Heads whose scores take more than this together are done one after another."""
KEYS_AT_ONCE = 64
"""Products are over a multiple of so many keys: a matrix kernel for new sizes takes as long to make as ten to run."""
MIN_KEYS_OF_GIVEN = 512
"""Products over fewer keys than this may cut their sums elsewhere. Measured (MKL cuts at 384)."""
ROWS_MULTIPLE = 8
"""A product gives each row the same bits at every number of rows that is a multiple of this. Measured."""
_FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""Gives attention [1, heads, rows, dim] and its log-sum-exp in float32, [1, heads, rows]."""
HAS_CPU_FLASH = _FLASH is not None
"""Whether this torch has the kernel that everything here stands on."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention of the last `new` of `total` tokens: what is chosen once for all layers of a forward.

    Without `exact` a few tokens' scores over many keys in bfloat16 may be rounded to bfloat16, as transformers' eager
    attention rounds them. With `is_apart` each new token gets the very rounding that a call for it alone would have,
    and where they are `given`, the one that it has among any others: `new` is a multiple of ROWS_MULTIPLE then.
    """

    heads: int
    kv_heads: int
    dim: int
    new: int
    total: int
    dtype: torch.dtype
    scale: float | None = None
    exact: bool = True
    is_apart: bool = False
    is_given: bool = False

    @property
    def reach(self) -> int:
        """How many keys it is handed at best: products of the same sizes as the last token's need no new kernel. What
        lies behind `total` only has to be finite."""
        if self.is_given:
            return max(MIN_KEYS_OF_GIVEN, -(-self.total // KEYS_AT_ONCE) * KEYS_AT_ONCE)
        return -(-self.total // KEYS_AT_ONCE) * KEYS_AT_ONCE if self.is_by_products else self.total

    def manner(self, reach: int) -> Manner:
        """How it is done with `reach` keys, `total` of them held: a function of query [new, heads, dim] and of key and
        value, [1, kv_heads, reach, dim], whose result has the numbers of [new, heads, dim] in order. Where it `is_flat`
        key and value are [kv_heads, reach, dim]."""
        if self.is_given:
            assert self.new % ROWS_MULTIPLE == 0, f"{self.new} given rows"
            return partial(_by_products, self, self._corner(reach))
        if self.is_apart and self.new > 1:
            return partial(_one_by_one, self)
        if self.is_by_products:
            corner = self._corner(reach)
            if self.exact or self.rows > FEW_ROWS:
                return partial(_by_products, self, corner)
            return partial(_by_rounded_products, self, corner.t()[:, None].to(self.dtype))
        if self.new > 1 and self.rows * self.total >= MIN_SCORES_OF_MANY:
            return partial(_by_merging, self)
        if self.new > 1:
            return partial(_masked, self, self._mask())
        return partial(_split if self.exact and self.total >= MIN_SPLIT else _alone, self)

    @property
    def is_flat(self) -> bool:
        """Whether keys and values come without the first dimension, which is always 1."""
        return self.is_given or (self.is_by_products and not (self.is_apart and self.new > 1))

    def _corner(self, reach: int) -> torch.Tensor:
        """What hides from each new token its successors and all that lies behind them, [new, reach - old]."""
        return torch.full((self.new, reach - self.old), -torch.inf).triu_(1)

    def _mask(self) -> torch.Tensor:
        """What hides each row's successors from it, [rows, total]."""
        hidden = torch.full((self.new, self.total), -torch.inf, dtype=self.dtype).triu_(self.old + 1)
        return hidden.repeat(self.groups, 1)

    @property
    def old(self) -> int:
        """Keys that no new token may miss."""
        return self.total - self.new

    @property
    def groups(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.kv_heads

    @property
    def rows(self) -> int:
        """The query heads of a group are rows of one product."""
        return self.groups * self.new

    @property
    def factor(self) -> float:
        """What scores are multiplied by."""
        return self.dim**-0.5 if self.scale is None else self.scale

    @property
    def is_by_products(self) -> bool:
        """Whether two matrix products are faster than the flash kernel, and as exact as is asked for."""
        if self.dtype != torch.bfloat16 or (self.new == 1 and self.exact and self.total >= MIN_SPLIT):
            return False
        least_of_few = MIN_SCORES_OF_FEW if self.exact else MIN_ROUNDED_SCORES_OF_FEW
        return self.rows * self.total >= (least_of_few if self.rows <= FEW_ROWS else MIN_SCORES_OF_MANY)


Manner = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


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
    out = attention.manner(total)(query[0].transpose(0, 1), key, value)
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
    (tested); the flash kernel's do."""
    first = replace(task, new=1, total=task.old + 1, is_apart=False)
    last = replace(first, total=task.total)
    step = max(1, FEW_ROWS // task.groups) if first.is_by_products and last.is_by_products else 1
    pieces, end = [], 0
    while (start := end) < task.new:
        page_end = -(-(task.old + start + 1) // KEYS_AT_ONCE) * KEYS_AT_ONCE - task.old
        end = min(start + step, task.new, page_end)
        part = replace(task, new=end - start, total=task.old + end, is_apart=False)
        reach = min(part.reach, key.shape[2])
        held = [states[0, :, :reach] if part.is_flat else states[:, :, :reach] for states in (key, value)]
        attended = part.manner(reach)(query[start:end], *held)
        pieces.append(attended.reshape(end - start, -1))
    return torch.cat(pieces)


def _masked(
    task: Attention, mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Some tokens over few keys: one call of the flash kernel."""
    packed = _packed(task, query)[None]
    out, _ = _FLASH(packed, key, value, attn_mask=mask[None, None], scale=task.scale)
    return _unpacked(task, out.reshape(packed.shape[1:]))


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


def _by_products(
    task: Attention, corner: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Attention as two matrix products with the scores between them in memory.

    In bfloat16 as exact as the flash kernel, and up to twice as fast: that one is slow for a few rows, and for a chunk's
    too. What is hidden adds zeros at the end of a row's sums, which change none of its bits.
    """
    query = _packed(task, query)
    at_once = max(1, min(task.kv_heads, MAX_SCORES_BYTES // (task.rows * key.shape[1] * 4)))
    score = _scores if task.is_given or task.rows > FEW_ROWS else _scores_along_keys
    out = torch.empty_like(query)
    for head in range(0, task.kv_heads, at_once):
        some = slice(head, head + at_once)
        scores = score(query[some], key[some], task.factor)
        _hide(scores, corner)
        torch.softmax(scores, -1, out=scores)
        if value.dtype != scores.dtype:
            scores = _SCRATCH.take("shares", scores.shape, value.dtype).copy_(scores)
        torch.bmm(scores, value[some], out=out[some])
    return _unpacked(task, out)


def _by_rounded_products(
    task: Attention, corner: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """The same for few rows, whose scores are rounded to bfloat16; in as few operations as can be.

    `corner` is [keys - old, 1, new].
    """
    scores = torch.baddbmm(_NO_BIAS, key, _packed(task, query).transpose(1, 2), beta=0, alpha=task.factor)
    if task.new > 1:
        last = scores.narrow(1, task.old, key.shape[1] - task.old)
        last.view(task.kv_heads, -1, task.groups, task.new).add_(corner)
    elif key.shape[1] > task.total:
        scores.narrow(1, task.total, key.shape[1] - task.total).fill_(-torch.inf)
    return _unpacked(task, torch.bmm(torch.softmax(scores.transpose(1, 2), -1), value))


def _packed(task: Attention, query: torch.Tensor) -> torch.Tensor:
    """[new, heads, dim] -> [kv_heads, rows, dim]."""
    if task.new == 1:
        return query.view(task.kv_heads, task.groups, task.dim)
    return query.transpose(0, 1).reshape(task.kv_heads, task.rows, task.dim)


def _unpacked(task: Attention, out: torch.Tensor) -> torch.Tensor:
    """[kv_heads, rows, dim] -> [new, heads, dim] or what has its numbers in this order."""
    return out if task.new == 1 else out.view(task.heads, task.new, task.dim).transpose(0, 1)


def _hide(scores: torch.Tensor, corner: torch.Tensor) -> None:
    """From each new token its successors, and what lies behind them: `corner` [new, keys - old] holds -inf there."""
    new, width = corner.shape
    if width > 1:
        scores.unflatten(1, (-1, new))[..., scores.shape[2] - width :].add_(corner)  # type: ignore[no-untyped-call]


def _scores_along_keys(query: torch.Tensor, key: torch.Tensor, factor: float) -> torch.Tensor:
    """Products of few queries, [kv_heads, rows, keys] in float32, at the speed at which memory yields the keys.

    torch's product of bfloat16 rounds its sums to bfloat16; a second one computes what that lost.
    """
    queries = query.transpose(1, 2)
    rounded = torch.bmm(key, queries)
    scores = _SCRATCH.take("scores", (*query.shape[:2], key.shape[1]), torch.float32)
    lost = torch.baddbmm(rounded, key, queries, beta=-1)
    return scores.copy_(rounded.transpose(1, 2)).add_(lost.transpose(1, 2)).mul_(factor)


def _scores(query: torch.Tensor, key: torch.Tensor, factor: float) -> torch.Tensor:
    """Products with float32 sums, [kv_heads, rows, keys]."""
    scores = _SCRATCH.take("scores", (*query.shape[:2], key.shape[1]), torch.float32)
    keys = key
    if key.dtype != torch.float32:
        keys = _SCRATCH.take("keys", key.shape, torch.float32).copy_(key)
    with _bfloat16_factors() if key.dtype == torch.bfloat16 else nullcontext():
        return torch.baddbmm(scores, query.float(), keys.transpose(1, 2), beta=0, alpha=factor, out=scores)


_NO_BIAS = torch.zeros(1, dtype=torch.bfloat16)


class _Scratch(threading.local):
    """Memory that is used again for every layer: fresh pages would cost as much as the arithmetic.

    Each thread has its own, because two models may compute at once.
    """

    def __init__(self) -> None:
        self._flat: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor, valid until the same name is taken again."""
        size = math.prod(shape)
        flat = self._flat.get((name, dtype))
        if flat is None or flat.numel() < size:
            with torch.inference_mode(False):
                flat = self._flat[name, dtype] = torch.empty(size, dtype=dtype)
        return flat[:size].view(*shape)


_SCRATCH = _Scratch()


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
