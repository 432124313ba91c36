"""What a lean model is made of: the norms, layers and embedding that its forward passes read. Knows torch and products alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvchat.models.checkpoint import Checkpoint
from kvchat.models.weights.projection import Product, Projection


class Norm:
    """Root mean square norm (Zhang and Sennrich 2019), scaled by `weight` [size].

    It is the layer norm of (x, -x): that has no mean and the same mean square, and torch does it in one kernel, not six.
    `narrow` takes [rows, 2, size], x and -x, to contiguous [rows, size]; `wide` takes it in float32.
    """

    __slots__ = ("narrow", "weight", "wide")

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        self.weight = weight
        narrow = torch.stack([weight, weight])
        wide, size, dtype, norm = narrow.float(), tuple(narrow.shape), weight.dtype, torch.layer_norm
        self.narrow: Product = lambda x: norm(x, size, narrow, None, epsilon).select(1, 0).contiguous()
        self.wide: Product = lambda x: norm(x, size, wide, None, epsilon).select(1, 0).to(dtype)


@dataclass(frozen=True, slots=True)
class LeanLayer:
    """One decoder layer's weights. `qkv` rows are all query heads, all key heads, all value heads; `gate_up` both halves.

    `head_norm` [heads + kv_heads, head_dim] scales normalised queries and keys (Qwen3), where a family does that.
    """

    attention_norm: Norm
    qkv: Projection
    out: Projection
    feed_forward_norm: Norm
    gate_up: Projection
    down: Projection
    rotates: bool = True
    head_norm: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """What a token's vector is: `take` [tokens] -> [tokens, hidden] in `dtype`. `weight` is what is held for it, if
    anything; with `is_tied` the head is the same matrix."""

    take: Product
    dtype: torch.dtype
    size: int
    is_tied: bool
    weight: torch.Tensor | None = None

    @classmethod
    def held(cls, weight: torch.Tensor, *, is_tied: bool) -> Embedding:
        """Of a matrix in memory, [vocab, hidden]."""
        return cls(weight.__getitem__, weight.dtype, weight.numel(), is_tied, weight)

    @classmethod
    def read(cls, checkpoint: Checkpoint, name: str, dtype: torch.dtype, *, is_tied: bool) -> Embedding:
        """Of a matrix that stays in its file, of which each forward reads the rows that it needs."""
        rows, columns = checkpoint.shape(name)
        return cls(lambda ids: checkpoint.rows(name, ids).to(dtype), dtype, rows * columns, is_tied)


@dataclass(frozen=True, slots=True)
class LeanWeights:
    """A whole model's weights."""

    embedding: Embedding
    layers: Sequence[LeanLayer]
    norm: Norm
    head: Projection
