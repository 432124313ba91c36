"""Llama-like models on a CPU in as few operations a token as torch allows; knows no transformers.

A decoded token of a small model costs more in Python and in unfused operations than in arithmetic. This is the same
mathematics as transformers' modules (tested to be equal): projections that read the same input are one product, K and V
are written into the arena and read there in place, and nothing is imported that is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from kvchat.models.flash import attend, attend_one_by_one
from kvchat.models.kv_state import Divisible, KVState
from kvchat.models.lean_shape import LeanShape
from kvchat.models.quantize import MAX_ROWS, Projection
from kvchat.models.reuse import ReuseRule
from kvchat.models.weights import WeightsMode

_POSITIONS_AT_ONCE = 1024


class Norm:
    """Root mean square norm (Zhang and Sennrich 2019), scaled by `weight` [size].

    It is the layer norm of (x, -x): that has no mean and the same mean square, and torch does it in one kernel, not six.
    """

    __slots__ = ("_doubled", "_size", "weight")

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self._doubled = torch.cat([weight, weight])
        self._size = weight.shape[0]

    def __call__(self, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        """`x` [rows, size] -> [rows, size]."""
        both = torch.cat((x, x.neg()), -1)
        return torch.layer_norm(both, (2 * self._size,), self._doubled, None, epsilon).narrow(
            1, 0, self._size
        )


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
class LeanWeights:
    """A whole model's weights; `embedding` [vocab, hidden]."""

    embedding: torch.Tensor
    layers: Sequence[LeanLayer]
    norm: Norm
    head: Projection


class LeanState(Divisible):
    """The arena of one conversation: K and V of every layer, each [kv_heads, capacity, head_dim].

    The whole context is reserved at once: pages that are never touched cost nothing.
    """

    def __init__(self, shape: LeanShape, capacity: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.capacity = capacity
        size = (shape.kv_heads, capacity, shape.head_dim)
        self.planes = [torch.empty(size, dtype=dtype) for _ in range(2 * shape.layers)]

    def reserve(self, num_tokens: int) -> None:
        """There is room for the whole context already."""
        assert num_tokens <= self.capacity, f"{num_tokens} tokens in an arena of {self.capacity}"

    def shrink(self) -> None:
        """Give back the pages that longer conversations have touched."""
        held = len(self.tokens)
        for index, plane in enumerate(self.planes):
            self.planes[index] = torch.empty_like(plane)
            self.planes[index][:, :held] = plane[:, :held]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where new tokens stand: behind `start` others, with their rotations, and how they attend."""

    start: int
    cos: torch.Tensor
    sin: torch.Tensor
    attend: Callable[..., torch.Tensor]


class LeanNetwork:
    """The forward pass of a llama-like model on a CPU. Not thread-safe: one thread owns it."""

    def __init__(self, shape: LeanShape, weights: LeanWeights) -> None:
        self.shape = shape
        self.weights = weights
        self._keeps_rows_apart = all(projection.planes for projection in self._projections())
        self._rotations = _Rotations(shape.inverse_frequencies(), weights.embedding.dtype)

    def new_state(self, rule: ReuseRule, capacity: int) -> KVState:
        """An empty arena for `capacity` tokens; every rule is kept by it."""
        return LeanState(self.shape, capacity, self.weights.embedding.dtype)

    def logits(
        self, tokens: Sequence[int], state: KVState, num_logits: int, *, restarts: bool = False
    ) -> torch.Tensor:
        """Logits of the last `num_logits` of `tokens` behind what `state` holds, [num_logits, vocab] in float32.

        K and V of `tokens` stand in the arena afterwards, and count once `state.advance` says so. Where all weights are
        integers, all the logits of a few tokens are to the bit those of one token after the other: the kernel does
        not mix rows, and each row attends alone. So guesses change no choice.
        """
        assert isinstance(state, LeanState)
        start, epsilon = 0 if restarts else len(state.tokens), self.shape.norm_epsilon
        tokens = [*state.tokens, *tokens] if restarts else tokens
        x = self.weights.embedding[torch.tensor(tokens)]
        is_guess = self._keeps_rows_apart and 1 < num_logits == len(tokens) <= MAX_ROWS
        attending = partial(attend_one_by_one if is_guess else attend, exact=not self._keeps_rows_apart)
        place = _Place(start, *self._rotations.at(start, len(tokens)), attending)
        for index, layer in enumerate(self.weights.layers):
            normed = layer.attention_norm(x, epsilon)
            planes = state.planes[2 * index], state.planes[2 * index + 1]  # [kv_heads, capacity, head_dim]
            x = x + layer.out(self._attention(layer, normed, place, planes))
            normed = layer.feed_forward_norm(x, epsilon)
            gate, up = layer.gate_up(normed).chunk(2, dim=-1)
            x = x + layer.down(functional.silu(gate) * up)
        return self.weights.head(self.weights.norm(x[-num_logits:], epsilon)).float()

    def _attention(
        self,
        layer: LeanLayer,
        x: torch.Tensor,
        place: _Place,
        planes: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """`x` [new, hidden], normalised -> [new, heads * head_dim]; writes K and V of the new tokens."""
        shape, start, end = self.shape, place.start, place.start + x.shape[0]
        heads = layer.qkv(x).view(x.shape[0], -1, shape.head_dim)  # [new, heads + 2 kv_heads, head_dim]
        query_key, value = heads[:, : -shape.kv_heads], heads[:, -shape.kv_heads :]
        if layer.head_norm is not None:
            query_key = (
                torch.rms_norm(query_key, (shape.head_dim,), None, shape.norm_epsilon) * layer.head_norm
            )
        if layer.rotates:
            query_key = torch.addcmul(
                query_key * place.cos, query_key.roll(shape.head_dim // 2, -1), place.sin
            )
        keys, values = planes
        keys[:, start:end] = query_key[:, shape.heads :].transpose(0, 1)
        values[:, start:end] = value.transpose(0, 1)
        query = query_key[:, : shape.heads].transpose(0, 1)[None]
        attended = place.attend(query, keys[None, :, :end], values[None, :, :end], scale=None)
        return attended.reshape(x.shape[0], -1)

    @property
    def mode(self) -> WeightsMode:
        """What decoding reads, by most of its matrices."""
        planes = sorted(len(projection.planes) for projection in self._projections())
        return (WeightsMode.NATIVE, WeightsMode.INT4, WeightsMode.INT8)[planes[len(planes) // 2]]

    @property
    def num_parameters(self) -> int:
        """Numbers in the model; what the embedding and the head share counts once."""
        return sum(tensor.numel() for tensor in self._tensors().values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights, the integers beside them included."""
        integers = sum(
            tensor.numel() * tensor.element_size()
            for projection in self._projections()
            for plane in projection.planes
            for tensor in plane
        )
        return integers + sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that decoding one token reads."""
        norms = sum(tensor.numel() * tensor.element_size() for tensor in self._norms())
        return norms + sum(projection.read_bytes for projection in self._projections())

    def _tensors(self) -> Mapping[int, torch.Tensor]:
        held = [self.weights.embedding, *self._norms()]
        for projection in self._projections():
            held += [projection.weight] if projection.bias is None else [projection.weight, projection.bias]
        return {tensor.data_ptr(): tensor for tensor in held}

    def _norms(self) -> list[torch.Tensor]:
        layers = self.weights.layers
        norms = [norm for layer in layers for norm in (layer.attention_norm, layer.feed_forward_norm)]
        heads = [layer.head_norm for layer in layers if layer.head_norm is not None]
        return [*(norm.weight for norm in norms), *heads, self.weights.norm.weight]

    def _projections(self) -> list[Projection]:
        of_layers = [(layer.qkv, layer.out, layer.gate_up, layer.down) for layer in self.weights.layers]
        return [*(projection for four in of_layers for projection in four), self.weights.head]


class _Rotations:
    """Cosines and sines of the rotary positions, computed a page at a time, each [positions, 1, head_dim].

    Rotating by halves (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) is x cos + roll(x) sin with the sign in `sin`.
    """

    def __init__(self, inverse_frequencies: torch.Tensor, dtype: torch.dtype) -> None:
        self._frequencies = inverse_frequencies
        self._dtype = dtype
        self._cos = self._sin = torch.empty(0)

    def at(self, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the positions from `start` on."""
        if start + count > len(self._cos):
            self._extend(start + count)
        return self._cos[start : start + count], self._sin[start : start + count]

    def _extend(self, count: int) -> None:
        num_positions = -(-count // _POSITIONS_AT_ONCE) * _POSITIONS_AT_ONCE
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), self._frequencies)
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.cat([cos, cos], dim=-1)[:, None].to(self._dtype)
        self._sin = torch.cat([-sin, sin], dim=-1)[:, None].to(self._dtype)
