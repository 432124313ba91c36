"""Llama-like models on a CPU in as few operations a token as torch allows; knows no transformers.

A decoded token of a small model costs more in Python and in unfused operations than in arithmetic. This is the same
mathematics as transformers' modules (tested to be equal): projections that read the same input are one product, K and V
are written into the arena and read there in place, and nothing is imported that is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from kvchat.models.company import Part, Together
from kvchat.models.kinds import ids_of, is_generated
from kvchat.models.kv_state import KVState
from kvchat.models.lean.attention import Attention
from kvchat.models.lean.company import Company
from kvchat.models.lean.flash import Kernel, kernel
from kvchat.models.lean.shape import LeanShape
from kvchat.models.lean.state import LeanState
from kvchat.models.lean.weights import LeanLayer, LeanWeights
from kvchat.models.pauses import Pauses
from kvchat.models.reuse import ReuseRule
from kvchat.models.weights.floats import ROWS_MULTIPLE
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.projection import MAX_ROWS, Product, Projection

_POSITIONS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class _Place:
    """How new tokens attend, and how they are turned where they stand, [new, heads + 2 kv_heads, head_dim]."""

    attend: Kernel
    cos: torch.Tensor
    sin: torch.Tensor


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
        self.pauses = Pauses()
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
        as so many `rows`, a multiple of ROWS_MULTIPLE. K and V of them stand in the arena afterwards, and count once
        `state.advance` says so. Each token's bits are those that it has among any others of its kind: generated ones
        are computed as if one came after the other, so that guesses change no choice; given ones by products whose rows
        do not depend on their number, and by attention that is cut at fixed places.
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
        place = _Place(kernel(attention, attention.reach), cos, sin)
        views = state.views(start, start + len(tokens), attention.reach, is_flat=attention.is_flat)
        for step, (written, keys, values) in zip(self._steps[is_given], views, strict=True):
            self.pauses.pause()
            heads = self._heads(step, stream, place.cos, place.sin)
            query, key_value = heads.split_with_sizes(self._split, 1)
            written.copy_(key_value)
            attended = place.attend(query, keys, values).reshape(len(tokens), -1)
            stream = self._behind(step, stream, attended, signs)
        norm = self.weights.norm.wide if is_wide else self.weights.norm.narrow
        return self.weights.head.scores(norm(stream[real - num_logits : real]), exact=is_wide)

    @property
    def together(self) -> Together:
        """Products keep generated rows apart, whosever they are."""
        return self._together

    def _together(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        is_wide = not self._is_narrow
        signs = self._wide_signs if is_wide else self._signs
        company = Company(parts, partial(self._attention, is_given=False))
        ids = torch.tensor([token for part in parts for token in ids_of(part.tokens)])
        stream = self.weights.embedding.take(ids).unsqueeze(1) * signs
        turns = [self._rotations.at(*place) for place in zip(company.starts, company.sizes, strict=True)]
        cos, sin = (torch.cat(tables) for tables in zip(*turns, strict=True))
        for step, held in zip(self._steps[False], company.layers(), strict=True):
            self.pauses.pause()
            query, key_value = self._heads(step, stream, cos, sin).split_with_sizes(self._split, 1)
            stream = self._behind(step, stream, company.attended(query, key_value, held), signs)
        norm = self.weights.norm.wide if is_wide else self.weights.norm.narrow
        return list(torch.split(self.weights.head.scores(norm(stream), exact=is_wide), company.sizes))

    def _behind(
        self, step: _Step, stream: torch.Tensor, attended: torch.Tensor, signs: torch.Tensor
    ) -> torch.Tensor:
        """What a layer makes of its input and of what its heads found, [new, heads * head_dim]."""
        is_one = len(attended) == 1
        added = step.out(attended)
        stream = torch.addcmul(stream, added if is_one else added.unsqueeze(1), signs)
        gate, up = step.gate_up(step.feed_forward_norm(stream)).split_with_sizes(self._halves, 1)
        added = step.down(_silu(gate) * up)
        return torch.addcmul(stream, added if is_one else added.unsqueeze(1), signs)

    @property
    def num_layers(self) -> int:
        """Of the decoder."""
        return len(self.weights.layers)

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

    def _heads(self, step: _Step, stream: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values of a layer's input, turned, [new, heads + 2 kv_heads, head_dim]."""
        dim = self.shape.head_dim
        heads = step.qkv(step.norm(stream)).view(stream.shape[0], -1, dim)
        if step.head_norm is not None:
            query_key, value = heads.split_with_sizes((len(step.head_norm), self.shape.kv_heads), 1)
            normed = torch.rms_norm(query_key, (dim,), None, self.shape.norm_epsilon) * step.head_norm
            heads = torch.cat((normed, value), 1)
        return torch.addcmul(heads * cos, heads.roll(dim // 2, -1), sin) if step.rotates else heads

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


def _silu(x: torch.Tensor) -> torch.Tensor:
    """x sigmoid(x). torch's own in float32 rounds the last numbers of each thread's share otherwise than the others."""
    if x.dtype != torch.float32:
        return functional.silu(x)
    return x.neg().exp_().add_(1).reciprocal_().mul_(x)


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
