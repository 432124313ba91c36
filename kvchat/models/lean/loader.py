"""A llama-like model's files -> LeanNetwork, without transformers; integer weights are made once and mapped ever after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kvchat.models.checkpoint import Checkpoint
from kvchat.models.gguf.matrices import GgufMatrices
from kvchat.models.lean.network import LeanLayer, LeanNetwork, LeanWeights, Norm
from kvchat.models.lean.shape import LeanShape
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.packed import PackedHome, packed, unpacked
from kvchat.models.weights.quantize import (
    Integers,
    Projection,
    fits,
    quantize,
)

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


def load_native(shape: LeanShape, checkpoint: Checkpoint, dtype: torch.dtype) -> LeanNetwork:
    """The model with its weights as they are, in `dtype`."""
    tensors: dict[str, torch.Tensor] = {}
    for key, names in _projections(shape, checkpoint.names):
        tensors[f"{key}.weight"] = _joined(checkpoint, names, "weight", dtype)
        if f"{names[0]}.bias" in checkpoint.names:
            tensors[f"{key}.bias"] = _joined(checkpoint, names, "bias", dtype)
    tensors |= _plain_tensors(shape, checkpoint, dtype)
    return _assembled(shape, tensors)


def load_integers(
    shape: LeanShape, checkpoint: Checkpoint, mode: WeightsMode, *, gguf: Path | None, home: PackedHome | None
) -> LeanNetwork:
    """The model with integer weights: the GGUF's own where there is one, else the nearest to the checkpoint's.

    They are kept in `home` and mapped from there the next time; what can't be written is made again.
    """

    def make() -> dict[str, torch.Tensor]:
        return dict(_integer_tensors(shape, checkpoint, mode, gguf))

    sources = [*checkpoint.paths, *([gguf] if gguf else [])]
    return _assembled(shape, home.tensors(mode, sources, make) if home else make())


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


def _plain_tensors(shape: LeanShape, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Everything that is no projection; the embedding only where the head does not hold it already."""
    tensors = {"norm": checkpoint.get("model.norm.weight").to(dtype)}
    for index in range(shape.layers):
        norms = [checkpoint.get(f"{name}.weight").to(dtype) for name in _LayerNames.of(shape, index).norms]
        tensors[f"{index}.attention_norm"], tensors[f"{index}.feed_forward_norm"] = norms[:2]
        if len(norms) > 2:
            heads = [norms[2].expand(shape.heads, -1), norms[3].expand(shape.kv_heads, -1)]
            tensors[f"{index}.head_norm"] = torch.cat(heads)
    if f"{_HEAD}.weight" in checkpoint.names and not shape.is_tied:
        tensors["embedding"] = checkpoint.get(_EMBEDDING).to(dtype)
    return tensors


def _joined(checkpoint: Checkpoint, names: Sequence[str], kind: str, dtype: torch.dtype) -> torch.Tensor:
    parts = [checkpoint.get(f"{name}.{kind}").to(dtype) for name in names]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _integer_tensors(
    shape: LeanShape, checkpoint: Checkpoint, mode: WeightsMode, gguf: Path | None
) -> Iterator[tuple[str, torch.Tensor]]:
    stored = GgufMatrices(gguf) if gguf else None
    for key, names in _projections(shape, checkpoint.names):
        if f"{names[0]}.bias" in checkpoint.names:
            yield f"{key}.bias", _joined(checkpoint, names, "bias", torch.bfloat16)
        weights = [checkpoint.get(f"{name}.weight") for name in names]
        if not all(fits(*weight.shape) for weight in weights):
            yield f"{key}.weight", _joined(checkpoint, names, "weight", torch.bfloat16)
            continue
        wanted = WeightsMode.INT8 if key == "head" else mode  # 4 bits would cost the head too much
        parts = [
            _integers(stored, f"{name}.weight", weight, wanted)
            for name, weight in zip(names, weights, strict=True)
        ]
        yield from packed(key, parts)
    yield from _plain_tensors(shape, checkpoint, torch.bfloat16).items()


def _integers(stored: GgufMatrices | None, name: str, weight: torch.Tensor, mode: WeightsMode) -> Integers:
    own = stored.integers(name) if stored else None
    if own is not None:
        return own
    return quantize(weight, WeightsMode.INT8 if stored and stored.is_quantised(name) else mode)


def _assembled(shape: LeanShape, tensors: Mapping[str, torch.Tensor]) -> LeanNetwork:
    layers = [
        LeanLayer(
            attention_norm=Norm(tensors[f"{index}.attention_norm"], shape.norm_epsilon),
            qkv=_projection(tensors, f"{index}.qkv"),
            out=_projection(tensors, f"{index}.out"),
            feed_forward_norm=Norm(tensors[f"{index}.feed_forward_norm"], shape.norm_epsilon),
            gate_up=_projection(tensors, f"{index}.gate_up"),
            down=_projection(tensors, f"{index}.down"),
            rotates=shape.rotates[index],
            head_norm=tensors.get(f"{index}.head_norm"),
        )
        for index in range(shape.layers)
    ]
    head = _projection(tensors, "head")
    embedding = tensors.get("embedding", head.weight)
    return LeanNetwork(shape, LeanWeights(embedding, layers, Norm(tensors["norm"], shape.norm_epsilon), head))


def _projection(tensors: Mapping[str, torch.Tensor], key: str) -> Projection:
    return Projection(tensors[f"{key}.weight"], tensors.get(f"{key}.bias"), unpacked(tensors, key))
