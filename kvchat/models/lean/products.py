"""Attention as two matrix products with the scores between them in memory. Knows tensors alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from kvchat.models.lean.attention import (
    FEW_ROWS,
    Attention,
)

MAX_SCORES_BYTES = 48 * 2**20
"""Heads whose scores take more than this together are done one after another."""


def by_products(
    task: Attention, corner: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Attention as two matrix products with the scores between them in memory.

    In bfloat16 as exact as the flash kernel, and up to twice as fast: that one is slow for a few rows, and for a chunk's
    too. What is hidden adds zeros at the end of a row's sums, which change none of its bits.
    """
    query = packed(task, query)
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
    return unpacked(task, out)


def by_rounded_products(
    task: Attention, corner: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """The same for few rows, whose scores are rounded to bfloat16; in as few operations as can be.

    `corner` is [keys - old, 1, new].
    """
    scores = torch.baddbmm(_NO_BIAS, key, packed(task, query).transpose(1, 2), beta=0, alpha=task.factor)
    if task.new > 1:
        last = scores.narrow(1, task.old, key.shape[1] - task.old)
        last.view(task.kv_heads, -1, task.groups, task.new).add_(corner)
    elif key.shape[1] > task.total:
        scores.narrow(1, task.total, key.shape[1] - task.total).fill_(-torch.inf)
    return unpacked(task, torch.bmm(torch.softmax(scores.transpose(1, 2), -1), value))


def packed(task: Attention, query: torch.Tensor) -> torch.Tensor:
    """[new, heads, dim] -> [kv_heads, rows, dim]."""
    if task.new == 1:
        return query.view(task.kv_heads, task.groups, task.dim)
    return query.transpose(0, 1).reshape(task.kv_heads, task.rows, task.dim)


def unpacked(task: Attention, out: torch.Tensor) -> torch.Tensor:
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
