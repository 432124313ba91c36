"""Llama-like models on a CPU in as few operations a token as torch allows; knows no transformers.

A decoded token of a small model costs more in Python and in unfused operations than in arithmetic. This is the same
mathematics as transformers' modules (tested to be equal): projections that read the same input are one product, K and V
are written into the arena and read there in place, and nothing is imported that is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import silu

from kvchat.models.checkpoint import Checkpoint
from kvchat.models.kinds import ids_of, is_generated
from kvchat.models.kv_state import Divisible, KVState
from kvchat.models.lean.flash import KEYS_AT_ONCE, MIN_KEYS_OF_GIVEN, ROWS_MULTIPLE, Attention, Manner
from kvchat.models.lean.shape import LeanShape
from kvchat.models.reuse import ReuseRule
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.projection import MAX_ROWS, Product, Projection

_POSITIONS_AT_ONCE = 1024
_NUMBERS_AT_ONCE = 2**29  # of one allocation: a larger one may be refused where several are not


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


class LeanState(Divisible):
    """The arena of one conversation: K and V of every layer, each [kv_heads, capacity, head_dim].

    The whole context is reserved at once, and some more, so that products never have to be smaller at its end: pages
    that are never touched cost nothing. Some layers lie in one tensor [layers, 2 kv_heads, room, head_dim], K before V,
    so that one call makes the views of all of them.
    """

    def __init__(self, shape: LeanShape, capacity: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.capacity = capacity
        room = max(MIN_KEYS_OF_GIVEN, -(-capacity // KEYS_AT_ONCE) * KEYS_AT_ONCE + KEYS_AT_ONCE)
        layer = 2 * shape.kv_heads * room * shape.head_dim
        at_once = max(1, _NUMBERS_AT_ONCE // layer)
        self._kv_heads = shape.kv_heads
        self._finite = 0
        self._arenas = [
            torch.empty(
                (min(at_once, shape.layers - first), 2 * shape.kv_heads, room, shape.head_dim),
                dtype=dtype,
            )
            for first in range(0, shape.layers, at_once)
        ]
        self.planes = self._planes()

    def _planes(self) -> list[torch.Tensor]:
        layers = [layer for arena in self._arenas for layer in arena]
        return [plane for layer in layers for plane in layer.split(self._kv_heads)]

    def views(
        self, start: int, end: int, reach: int, *, is_flat: bool = False
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """For each layer where K and V of the tokens from `start` to `end` go, [new, 2 kv_heads, head_dim], and the K
        and the V of `reach` tokens, each [1, kv_heads, reach, head_dim], or if `is_flat` without the 1."""
        own, kv_heads = max(end, self._finite), self._kv_heads
        for arena in self._arenas:
            if own < reach:
                arena[:, :, own:reach].zero_()  # whatever lay there, it may be no number
            written = arena[:, :, start:end].transpose(1, 2).unbind(0)
            held = arena[:, :, :reach] if is_flat else arena[:, None, :, :reach]
            keys, values = held[..., :kv_heads, :, :].unbind(0), held[..., kv_heads:, :, :].unbind(0)
            yield from zip(written, keys, values, strict=True)
        self._finite = max(self._finite, reach)

    def reserve(self, num_tokens: int) -> None:
        """There is room for the whole context already."""
        assert num_tokens <= self.capacity, f"{num_tokens} tokens in an arena of {self.capacity}"

    def shrink(self) -> None:
        """Give back the pages that longer conversations have touched."""
        held = self._finite = len(self.tokens)
        for index, arena in enumerate(self._arenas):
            self._arenas[index] = torch.empty_like(arena)
            self._arenas[index][:, :, :held] = arena[:, :, :held]
        self.planes = self._planes()


@dataclass(frozen=True, slots=True)
class _Place:
    """How new tokens attend, and how they are turned where they stand, [new, heads + 2 kv_heads, head_dim]."""

    attend: Manner
    cos: torch.Tensor
    sin: torch.Tensor
    is_one: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """What a layer does, in the form that the tokens' kind calls for."""

    norm: Product
    qkv: Product
    out: Product
    feed_forward_norm: Product
    gate_up: Product
    down: Product
    rotates: bool
    head_norm: torch.Tensor | None

    @classmethod
    def of(cls, layer: LeanLayer, *, is_given: bool, is_wide: bool) -> _Step:
        norms = layer.attention_norm, layer.feed_forward_norm
        first, second = (norm.wide if is_wide else norm.narrow for norm in norms)
        four = layer.qkv, layer.out, layer.gate_up, layer.down
        qkv, out, gate_up, down = (product.given if is_given else product.generated for product in four)
        return cls(first, qkv, out, second, gate_up, down, layer.rotates, layer.head_norm)


class LeanNetwork:
    """The forward pass of a llama-like model on a CPU. Not thread-safe: one thread owns it.

    What flows through the layers is [new, 2, hidden], x and -x, as its norms take it. It is summed in float32, which
    costs given tokens nothing; of generated ones beside integers, which it would slow, in their own dtype.
    """

    def __init__(self, shape: LeanShape, weights: LeanWeights) -> None:
        self.shape = shape
        self.weights = weights
        self._keeps_rows_apart = all(projection.matrices for projection in self._projections())
        self._is_narrow = self._keeps_rows_apart and weights.embedding.dtype != torch.float32
        self._rotations = _Rotations(shape, weights.embedding.dtype)
        self._split = (shape.heads, 2 * shape.kv_heads)
        self._halves = (shape.feed_forward, shape.feed_forward)
        self._steps = {
            is_given: [
                _Step.of(layer, is_given=is_given, is_wide=is_given or not self._is_narrow)
                for layer in weights.layers
            ]
            for is_given in (False, True)
        }
        self._wide_signs = torch.tensor([[1.0], [-1.0]]).repeat(1, shape.hidden)
        self._signs = self._wide_signs.to(weights.embedding.dtype)

    def new_state(self, rule: ReuseRule, capacity: int) -> KVState:
        """An empty arena for `capacity` tokens; every rule is kept by it."""
        return LeanState(self.shape, capacity, self.weights.embedding.dtype)

    def logits(
        self, tokens: Sequence[int], state: KVState, num_logits: int, *, rows: int, restarts: bool = False
    ) -> torch.Tensor:
        """Logits of the last `num_logits` of `tokens` behind what `state` holds, [num_logits, vocab] in float32.

        `tokens` are of one kind, generated ones no more than `generated_at_once`; given ones are computed with others
        as so many `rows`, a multiple of ROWS_MULTIPLE. K and V of them stand in the arena afterwards, and count once `state.advance` says so. Each token's bits are those that it has among any others of
        its kind: generated ones are computed as if one came after the other, so that guesses change no choice; given
        ones by products whose rows do not depend on their number.
        """
        assert isinstance(state, LeanState)
        start = 0 if restarts else len(state.tokens)
        is_given = not is_generated(tokens[0])
        tokens = ids_of([*state.tokens, *tokens] if restarts else tokens)
        real = len(tokens)
        rows = max(rows, -(-real // ROWS_MULTIPLE) * ROWS_MULTIPLE) if is_given else real
        tokens = [*tokens, *[tokens[-1]] * (rows - real)]
        attention = self._attention(start, len(tokens), is_given=is_given)
        is_wide = is_given or not self._is_narrow
        signs = self._wide_signs if is_wide else self._signs
        stream = self.weights.embedding.take(torch.tensor(tokens)).unsqueeze(1) * signs
        cos, sin = self._rotations.at(start, len(tokens))
        place = _Place(attention.manner(attention.reach), cos, sin, is_one=len(tokens) == 1)
        views = state.views(start, start + len(tokens), attention.reach, is_flat=attention.is_flat)
        for step, (written, keys, values) in zip(self._steps[is_given], views, strict=True):
            heads = self._heads(step, stream, place)
            query, key_value = heads.split_with_sizes(self._split, 1)
            written.copy_(key_value)
            added = step.out(place.attend(query, keys, values).reshape(len(tokens), -1))
            stream = torch.addcmul(stream, added if place.is_one else added.unsqueeze(1), signs)
            gate, up = step.gate_up(step.feed_forward_norm(stream)).split_with_sizes(self._halves, 1)
            added = step.down(silu(gate) * up)
            stream = torch.addcmul(stream, added if place.is_one else added.unsqueeze(1), signs)
        norm = self.weights.norm.wide if is_wide else self.weights.norm.narrow
        return self.weights.head.scores(norm(stream[real - num_logits : real]), exact=is_wide)

    @property
    def generated_at_once(self) -> int:
        """How many generated tokens one forward takes."""
        return MAX_ROWS

    def _attention(self, start: int, num_new: int, *, is_given: bool) -> Attention:
        return Attention(
            heads=self.shape.heads,
            kv_heads=self.shape.kv_heads,
            dim=self.shape.head_dim,
            new=num_new,
            total=start + num_new,
            dtype=self.weights.embedding.dtype,
            exact=not self._keeps_rows_apart,
            is_apart=not is_given,
            is_given=is_given,
        )

    def _heads(self, step: _Step, stream: torch.Tensor, place: _Place) -> torch.Tensor:
        """Queries, keys and values of a layer's input, turned, [new, heads + 2 kv_heads, head_dim]."""
        dim = self.shape.head_dim
        heads = step.qkv(step.norm(stream)).view(stream.shape[0], -1, dim)
        if step.head_norm is not None:
            query_key, value = heads.split_with_sizes((len(step.head_norm), self.shape.kv_heads), 1)
            normed = torch.rms_norm(query_key, (dim,), None, self.shape.norm_epsilon) * step.head_norm
            heads = torch.cat((normed, value), 1)
        return (
            torch.addcmul(heads * place.cos, heads.roll(dim // 2, -1), place.sin) if step.rotates else heads
        )

    @property
    def mode(self) -> WeightsMode:
        """What decoding reads, by most of its matrices."""
        planes = sorted(projection.num_planes for projection in self._projections())
        return (WeightsMode.NATIVE, WeightsMode.INT4, WeightsMode.INT8)[planes[len(planes) // 2]]

    @property
    def num_parameters(self) -> int:
        """Numbers in the model; what the embedding and the head share counts once."""
        embedding = self.weights.embedding
        biases = [projection.bias for projection in self._projections() if projection.bias is not None]
        plain = sum(tensor.numel() for tensor in [*self._norms(), *biases])
        matrices = sum(math.prod(projection.shape) for projection in self._projections())
        return plain + matrices + (0 if embedding.is_tied else embedding.size)

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights that are held, in every form."""
        embedding = self.weights.embedding
        own = 0 if embedding.weight is None or embedding.is_tied else embedding.weight.nbytes
        norms = sum(tensor.nbytes for tensor in self._norms())
        return own + norms + sum(projection.num_bytes for projection in self._projections())

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that decoding one token reads."""
        norms = sum(tensor.nbytes for tensor in self._norms())
        return norms + sum(projection.read_bytes for projection in self._projections())

    def _norms(self) -> list[torch.Tensor]:
        layers = self.weights.layers
        norms = [norm for layer in layers for norm in (layer.attention_norm, layer.feed_forward_norm)]
        heads = [layer.head_norm for layer in layers if layer.head_norm is not None]
        return [*(norm.weight for norm in norms), *heads, self.weights.norm.weight]

    def _projections(self) -> list[Projection]:
        of_layers = [(layer.qkv, layer.out, layer.gate_up, layer.down) for layer in self.weights.layers]
        return [*(projection for four in of_layers for projection in four), self.weights.head]


class _Rotations:
    """Cosines and sines of the rotary positions, computed a page at a time.

    Rotating by halves (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) is x cos + roll(x) sin with the sign in `sin`.
    """

    def __init__(self, shape: LeanShape, dtype: torch.dtype) -> None:
        self._frequencies = shape.inverse_frequencies()
        self._num_rotated, self._num_values = shape.heads + shape.kv_heads, shape.kv_heads
        self._still = torch.tensor([1, 0], dtype=dtype).view(2, 1, 1, 1)
        self._tables = torch.empty(2, 0, 1, shape.head_dim, dtype=dtype)

    def at(self, start: int, count: int) -> tuple[torch.Tensor, ...]:
        """Cosines and sines of the positions from `start` on, [count, heads + 2 kv_heads, head_dim]; values stay."""
        if start + count > self._tables.shape[1]:
            self._extend(start + count)
        turned = self._tables[:, start : start + count].expand(-1, -1, self._num_rotated, -1)
        still = self._still.expand(-1, count, self._num_values, turned.shape[3])
        return torch.cat([turned, still], dim=2).unbind(0)

    def _extend(self, count: int) -> None:
        num_positions = -(-count // _POSITIONS_AT_ONCE) * _POSITIONS_AT_ONCE
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), self._frequencies)
        cos, sin = angles.cos(), angles.sin()
        tables = torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])
        self._tables = tables[:, :, None].to(self._tables.dtype)
