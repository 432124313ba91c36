"""A llama-like model's tensors -> LeanNetwork, without transformers; integer weights are made once and mapped ever after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from kvchat.models.checkpoint import Checkpoint
from kvchat.models.lean.network import LeanNetwork
from kvchat.models.lean.shape import LeanShape
from kvchat.models.lean.weights import Embedding, LeanLayer, LeanWeights, Norm
from kvchat.models.progress import Progress
from kvchat.models.weights.floats import laid_out
from kvchat.models.weights.making import matrix_bits, matrix_bytes, matrix_planes
from kvchat.models.weights.matrix import Buffer, IntegerMatrix
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.packed import PackedHome, Parts
from kvchat.models.weights.projection import Projection
from kvchat.models.weights.quantize import Plane, fits

_HEAD = "lm_head"
_EMBEDDING = "model.embed_tokens.weight"


def is_of(shape: LeanShape, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds what the model's shape calls for, and nothing that it does not know."""
    names = checkpoint.names
    needed = {_EMBEDDING, "model.norm.weight"}
    allowed = {f"{_HEAD}.weight"}
    if not (shape.is_tied or (shape.is_tied is None and f"{_HEAD}.weight" not in names)):
        needed |= allowed
    for index in range(shape.layers):
        parts = _LayerNames.of(shape, index)
        matrices = [*parts.qkv, parts.out, *parts.gate_up, parts.down]
        needed |= {f"{name}.weight" for name in [*parts.norms, *matrices]}
        allowed |= {f"{name}.bias" for name in matrices}
    return needed <= names <= needed | allowed and _sizes_fit(shape, checkpoint)


@dataclass(frozen=True, slots=True)
class Form:
    """How the weights are held: numbers in `dtype`, and what decoding reads as `mode` says. `keeps`: what integers stand
    for is kept beside them, so that it is made once and not for every forward over given tokens."""

    dtype: torch.dtype
    mode: WeightsMode = WeightsMode.NATIVE
    keeps: bool = False


def load_lean(
    shape: LeanShape, checkpoint: Checkpoint, form: Form, *, home: PackedHome | None, progress: Progress
) -> LeanNetwork:
    """The model with its weights as they are, or with integers: the file's own where it has them, else the nearest.

    These are kept in `home` and mapped from there the next time; what can't be written is made again.
    """
    planes: dict[str, list[Plane]] = {}
    if form.mode is not WeightsMode.NATIVE:

        def make() -> Parts:
            return _integers(shape, checkpoint, form.mode, progress)

        planes = home.planes(form.mode, checkpoint.paths, make) if home else dict(make())
    return _assembled(shape, checkpoint, form, planes)


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of weights: `held` in any case, and `values`, what integers stand for."""

    held: int
    values: int


def lean_size(shape: LeanShape, checkpoint: Checkpoint, mode: WeightsMode, dtype: torch.dtype) -> Size:
    """What a model will take; next to nothing is read for it."""
    plain = {name: math.prod(checkpoint.shape(name)) * dtype.itemsize for name in checkpoint.names}
    if mode is WeightsMode.NATIVE:
        return Size(sum(plain.values()), 0)
    groups = list(_groups(shape, checkpoint, mode))
    matrices = [(f"{name}.weight", key) for key, _, names in groups for name in names]
    values = sum(plain.pop(name) for name, _ in matrices)
    plain.pop(_EMBEDDING, None)  # stays in its file
    modes = {"head/0": WeightsMode.INT8}
    integers = sum(matrix_bytes(checkpoint, name, modes.get(key, mode)) for name, key in matrices)
    return Size(sum(plain.values()) + integers, values)


@dataclass(frozen=True, slots=True)
class _LayerNames:
    """The names of one layer's tensors in transformers' checkpoints, without `.weight`."""

    norms: tuple[str, ...]
    qkv: tuple[str, ...]
    out: str
    gate_up: tuple[str, ...]
    down: str

    @classmethod
    def of(cls, shape: LeanShape, index: int) -> _LayerNames:
        layer = f"model.layers.{index}"
        attention, feed_forward = f"{layer}.self_attn", f"{layer}.mlp"
        norms = [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        if shape.family.norms_heads:
            norms += [f"{attention}.q_norm", f"{attention}.k_norm"]
        fused = shape.family.fused
        qkv = ("qkv_proj",) if fused else ("q_proj", "k_proj", "v_proj")
        gate_up = ("gate_up_proj",) if fused else ("gate_proj", "up_proj")
        return cls(
            norms=tuple(norms),
            qkv=tuple(f"{attention}.{name}" for name in qkv),
            out=f"{attention}.o_proj",
            gate_up=tuple(f"{feed_forward}.{name}" for name in gate_up),
            down=f"{feed_forward}.down_proj",
        )


def _sizes_fit(shape: LeanShape, checkpoint: Checkpoint) -> bool:
    heads = shape.heads + 2 * shape.kv_heads
    sizes = {
        "qkv": (heads * shape.head_dim, shape.hidden),
        "out": (shape.hidden, shape.heads * shape.head_dim),
        "gate_up": (2 * shape.feed_forward, shape.hidden),
        "down": (shape.hidden, shape.feed_forward),
        "head": (shape.vocabulary, shape.hidden),
    }
    for key, names in _projections(shape, checkpoint.names):
        parts = [checkpoint.shape(f"{name}.weight") for name in names]
        if (sum(part[0] for part in parts), parts[0][1]) != sizes[key.rpartition(".")[2]]:
            return False
        biases = [checkpoint.shape(bias) for name in names if (bias := f"{name}.bias") in checkpoint.names]
        if biases and biases != [part[:1] for part in parts]:
            return False
    return checkpoint.shape(_EMBEDDING) == sizes["head"] and _norms_fit(shape, checkpoint)


def _norms_fit(shape: LeanShape, checkpoint: Checkpoint) -> bool:
    wide, narrow = (shape.hidden,), (shape.head_dim,)
    sizes = {"model.norm": wide}
    for index in range(shape.layers):
        norms = _LayerNames.of(shape, index).norms
        sizes |= zip(norms, (wide, wide, narrow, narrow), strict=False)
    return all(checkpoint.shape(f"{name}.weight") == size for name, size in sizes.items())


def _projections(shape: LeanShape, names: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Our key of every projection, and the matrices of the checkpoint that it is made of."""
    for index in range(shape.layers):
        parts = _LayerNames.of(shape, index)
        yield f"{index}.qkv", parts.qkv
        yield f"{index}.out", (parts.out,)
        yield f"{index}.gate_up", parts.gate_up
        yield f"{index}.down", (parts.down,)
    is_tied = f"{_HEAD}.weight" not in names or shape.is_tied
    yield "head", (_EMBEDDING.removesuffix(".weight") if is_tied else _HEAD,)


def _joined(checkpoint: Checkpoint, names: Sequence[str], kind: str, dtype: torch.dtype) -> torch.Tensor:
    parts = [checkpoint.get(f"{name}.{kind}").to(dtype) for name in names]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _groups(
    shape: LeanShape, checkpoint: Checkpoint, mode: WeightsMode
) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Key, bits and matrices of all that becomes integers: those of a projection that have as many bits are one."""
    for key, names in _projections(shape, checkpoint.names):
        if not all(fits(*checkpoint.shape(f"{name}.weight")) for name in names):
            continue
        wanted = WeightsMode.INT8 if key == "head" else mode  # 4 bits would cost the head too much
        found = [(matrix_bits(checkpoint, f"{name}.weight", wanted), name) for name in names]
        for number, (bits, same) in enumerate(groupby(found, lambda each: each[0])):
            yield f"{key}/{number}", bits, tuple(name for _, name in same)


def _integers(shape: LeanShape, checkpoint: Checkpoint, mode: WeightsMode, progress: Progress) -> Parts:
    groups = list(_groups(shape, checkpoint, mode))
    sizes = [sum(_numbers(checkpoint, name) for name in names) for _, _, names in groups]
    for number, (key, bits, names) in enumerate(groups):
        progress("repacking the weights", sum(sizes[:number]), sum(sizes))
        wanted = WeightsMode.INT4 if bits == 4 else WeightsMode.INT8
        yield key, matrix_planes(checkpoint, [f"{name}.weight" for name in names], wanted)
    progress("repacking the weights", sum(sizes), sum(sizes))


def _numbers(checkpoint: Checkpoint, name: str) -> int:
    rows, columns = checkpoint.shape(f"{name}.weight")
    return rows * columns


def _assembled(
    shape: LeanShape, checkpoint: Checkpoint, form: Form, planes: Mapping[str, Sequence[Plane]]
) -> LeanNetwork:
    names, dtype, buffer = checkpoint.names, form.dtype, Buffer()
    projections = {}
    for key, parts in _projections(shape, names):
        bias = _joined(checkpoint, parts, "bias", dtype) if f"{parts[0]}.bias" in names else None
        numbers = [f"{key}/{number}" for number in range(len(parts))]
        matrices = [IntegerMatrix(planes[number]) for number in numbers if number in planes]
        weight = None if matrices else _joined(checkpoint, parts, "weight", dtype)
        if (
            weight is not None and key != "head"
        ):  # which is read a row at a time, and may be the embedding too
            weight = laid_out(weight)
        projections[key] = Projection(weight, bias, matrices, buffer=buffer, keeps=form.keeps)
    layers = [_layer(shape, checkpoint, dtype, projections, index) for index in range(shape.layers)]
    norm = Norm(checkpoint.get("model.norm.weight").to(dtype), shape.norm_epsilon)
    head = projections["head"]
    return LeanNetwork(shape, LeanWeights(_embedding(shape, checkpoint, dtype, head), layers, norm, head))


def _embedding(shape: LeanShape, checkpoint: Checkpoint, dtype: torch.dtype, head: Projection) -> Embedding:
    """Of the head's own matrix where they are one; beside integers read from the file, as it lies there."""
    is_tied = f"{_HEAD}.weight" not in checkpoint.names or bool(shape.is_tied)
    if head.weight is None:
        return Embedding.read(checkpoint, _EMBEDDING, dtype, is_tied=is_tied)
    weight = head.weight if is_tied else checkpoint.get(_EMBEDDING).to(dtype)
    return Embedding.held(weight, is_tied=is_tied)


def _layer(
    shape: LeanShape,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    projections: Mapping[str, Projection],
    index: int,
) -> LeanLayer:
    norms = [checkpoint.get(f"{name}.weight").to(dtype) for name in _LayerNames.of(shape, index).norms]
    head_norm = None
    if len(norms) > 2:
        head_norm = torch.cat([norms[2].expand(shape.heads, -1), norms[3].expand(shape.kv_heads, -1)])
    return LeanLayer(
        attention_norm=Norm(norms[0], shape.norm_epsilon),
        qkv=projections[f"{index}.qkv"],
        out=projections[f"{index}.out"],
        feed_forward_norm=Norm(norms[1], shape.norm_epsilon),
        gate_up=projections[f"{index}.gate_up"],
        down=projections[f"{index}.down"],
        rotates=shape.rotates[index],
        head_norm=head_norm,
    )
