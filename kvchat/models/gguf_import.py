"""A GGUF file -> a folder of safetensors, config and tokenizer that transformers loads; knows no other folder.

The values are those of transformers' own dequantisation, bit by bit, taken without its detours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.gguf import GgufFile, GgufTensor, tensor_values
from kvchat.models.gguf_tokenizer import build_tokenizer, end_ids, special_id, tokenizer_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`, from time to time; `total` 0 means unknown."""

_ELSEWHERE = "take the model's safetensors instead"


@dataclass(frozen=True, slots=True)
class Family:
    """One of llama.cpp's architectures in transformers' terms. `permutes_qk`: rows of Q and K are interleaved."""

    model_type: str
    model_class: str
    permutes_qk: bool = False
    has_qkv_bias: bool = False
    has_qk_norm: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", permutes_qk=True),  # Mistral too
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", has_qkv_bias=True),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", has_qk_norm=True),
}
"""The architectures that are imported directly, by llama.cpp's name."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """A model's sizes, as its GGUF states them."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int

    @classmethod
    def of(cls, gguf: GgufFile) -> _Shape:
        hidden, heads = gguf.integer("embedding_length"), gguf.integer("attention.head_count")
        embedding = gguf.tensors.get("token_embd.weight")
        if embedding is None:
            raise ModelUnavailableError(
                f"{gguf.path} has no tensor token_embd.weight", "fetch the file again"
            )
        rotated = gguf.integer("rope.dimension_count", hidden // heads)
        return cls(
            layers=gguf.integer("block_count"),
            hidden=hidden,
            feed_forward=gguf.integer("feed_forward_length"),
            heads=heads,
            kv_heads=gguf.integer("attention.head_count_kv", heads),
            head_dim=gguf.integer("attention.key_length", rotated),
            vocabulary=embedding.shape[0],
            context=gguf.integer("context_length"),
        )


@dataclass(frozen=True, slots=True)
class _Target:
    """One tensor as transformers wants it, and how many heads its rows come interleaved by."""

    name: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0


def write_model(gguf: GgufFile, folder: Path, progress: Progress) -> None:
    """Fill `folder` with everything that `AutoModelForCausalLM.from_pretrained(folder)` wants.

    Raises ModelUnavailableError for an architecture, a tensor or a tokenizer that can't be carried over.
    """
    family = FAMILIES.get(gguf.architecture)
    if family is None:
        _write_through_transformers(gguf, folder, progress)
    else:
        shape = _Shape.of(gguf)
        targets = _matched(gguf, _expected(gguf, family, shape))
        _write_json(folder / "config.json", _config(gguf, family, shape))
        _write_weights(gguf, targets, folder / "model.safetensors", progress)
    _write_json(folder / "generation_config.json", _generation_config(gguf))
    _write_tokenizer(gguf, folder)


def _write_tokenizer(gguf: GgufFile, folder: Path) -> None:
    build_tokenizer(gguf).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_settings(gguf))
    template = gguf.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(gguf: GgufFile, family: Family, shape: _Shape) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [family.model_class],
        "model_type": family.model_type,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": gguf.number("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "rope_parameters": _rope_parameters(gguf, shape),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "dtype": _dtype(gguf),
    }
    if not family.has_qkv_bias:
        config["attention_bias"] = _has_bias(gguf)
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{role}_token_id"] = special_id(gguf, key)
    return config


def _generation_config(gguf: GgufFile) -> dict[str, Any]:
    ends = end_ids(gguf)
    config: dict[str, Any] = {"eos_token_id": ends[0] if len(ends) == 1 else ends}
    for role, key in (("bos", "bos"), ("pad", "padding")):
        token_id = special_id(gguf, key)
        if token_id is not None:
            config[f"{role}_token_id"] = token_id
    return config if ends else {key: value for key, value in config.items() if key != "eos_token_id"}


def _dtype(gguf: GgufFile) -> str:
    types = {tensor.type.name for tensor in gguf.tensors.values()}
    if types <= {"F32", "BF16"} and "BF16" in types:
        return "bfloat16"
    return "float16" if types <= {"F32", "F16"} and "F16" in types else "float32"


def _has_bias(gguf: GgufFile) -> bool:
    return "blk.0.attn_q.bias" in gguf.tensors


def _rope_parameters(gguf: GgufFile, shape: _Shape) -> dict[str, Any]:
    base = gguf.number("rope.freq_base", 10000.0)
    if "rope_freqs.weight" in gguf.tensors:
        return _llama3_rope(gguf, shape, base)
    kind = gguf.metadata.get(f"{gguf.architecture}.rope.scaling.type", "none")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if kind in ("linear", "yarn"):
        parameters |= {"rope_type": kind, "factor": gguf.number("rope.scaling.factor")}
    elif kind != "none":
        raise ModelUnavailableError(
            f"{gguf.path} scales its positions by {kind!r}, which is unknown", _ELSEWHERE
        )
    if kind == "yarn":
        original = gguf.integer("rope.scaling.original_context_length", shape.context)
        parameters["original_max_position_embeddings"] = original
    return parameters


def _llama3_rope(gguf: GgufFile, shape: _Shape, base: float) -> dict[str, Any]:
    """Llama 3's scaling, which a GGUF carries only as the factors it leads to; they are checked against it."""
    import numpy as np

    data = np.memmap(gguf.path, dtype=np.uint8, mode="r")
    factors = tensor_values(data, gguf.tensors["rope_freqs.weight"]).astype(np.float64).ravel()
    factor, original = float(factors.max(initial=1.0)), 8192
    wavelengths = 2 * np.pi * base ** (np.arange(0, shape.head_dim, 2) / shape.head_dim)
    smooth = np.clip((original / wavelengths - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    if factors.shape != smooth.shape or not np.allclose(
        factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3
    ):
        raise ModelUnavailableError(f"{gguf.path} scales its positions in an unknown way", _ELSEWHERE)
    return {
        "rope_type": "llama3",
        "rope_theta": base,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }


def _expected(gguf: GgufFile, family: Family, shape: _Shape) -> dict[str, _Target]:
    """Every tensor that the model has, by its name in the GGUF."""
    targets = {
        "token_embd.weight": _Target("model.embed_tokens.weight", (shape.vocabulary, shape.hidden)),
        "output_norm.weight": _Target("model.norm.weight", (shape.hidden,)),
    }
    if "output.weight" in gguf.tensors:
        targets["output.weight"] = _Target("lm_head.weight", (shape.vocabulary, shape.hidden))
    block = _block(family, shape, has_bias=_has_bias(gguf))
    for layer in range(shape.layers):
        for name, target in block.items():
            full_name = f"model.layers.{layer}.{target.name}"
            targets[f"blk.{layer}.{name}"] = _Target(full_name, target.shape, target.interleaved_heads)
    return targets


def _block(family: Family, shape: _Shape, *, has_bias: bool) -> dict[str, _Target]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    q_heads, k_heads = (shape.heads, shape.kv_heads) if family.permutes_qk else (0, 0)
    linear = {
        "attn_q": ("self_attn.q_proj", queries, shape.hidden, q_heads),
        "attn_k": ("self_attn.k_proj", keys, shape.hidden, k_heads),
        "attn_v": ("self_attn.v_proj", keys, shape.hidden, 0),
        "attn_output": ("self_attn.o_proj", shape.hidden, queries, 0),
        "ffn_gate": ("mlp.gate_proj", shape.feed_forward, shape.hidden, 0),
        "ffn_up": ("mlp.up_proj", shape.feed_forward, shape.hidden, 0),
        "ffn_down": ("mlp.down_proj", shape.hidden, shape.feed_forward, 0),
    }
    biased = ("attn_q", "attn_k", "attn_v") + (() if family.has_qkv_bias else ("attn_output",))
    targets = {
        "attn_norm.weight": _Target("input_layernorm.weight", (shape.hidden,)),
        "ffn_norm.weight": _Target("post_attention_layernorm.weight", (shape.hidden,)),
    }
    for source, (name, rows, columns, heads) in linear.items():
        targets[f"{source}.weight"] = _Target(f"{name}.weight", (rows, columns), heads)
        if source in biased and (family.has_qkv_bias or has_bias):
            targets[f"{source}.bias"] = _Target(f"{name}.bias", (rows,), heads)
    if family.has_qk_norm:
        targets["attn_q_norm.weight"] = _Target("self_attn.q_norm.weight", (shape.head_dim,))
        targets["attn_k_norm.weight"] = _Target("self_attn.k_norm.weight", (shape.head_dim,))
    return targets


def _matched(gguf: GgufFile, expected: Mapping[str, _Target]) -> list[tuple[GgufTensor, _Target]]:
    """The file's tensors with their targets. Raises when one is missing, unknown or of another shape."""
    ignored = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd")
    unknown = [name for name in gguf.tensors if name not in expected and not ignored.fullmatch(name)]
    missing = [name for name in expected if name not in gguf.tensors]
    for names, verb in ((missing, "lacks"), (unknown, "has the unknown")):
        if names:
            message = f"{gguf.path} ({gguf.architecture}) {verb} tensor {names[0]}"
            raise ModelUnavailableError(message, _ELSEWHERE)
    for name, target in expected.items():
        if gguf.tensors[name].shape != target.shape:
            message = f"{gguf.path}: tensor {name} is {gguf.tensors[name].shape}, not {target.shape}"
            raise ModelUnavailableError(message, "fetch the file again")
    return [(gguf.tensors[name], target) for name, target in expected.items()]


def _write_weights(
    gguf: GgufFile, targets: list[tuple[GgufTensor, _Target]], path: Path, progress: Progress
) -> None:
    """Write model.safetensors tensor by tensor, so that a large model never stands in memory as a whole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor, target in targets:
        kind, width = _stored(tensor)
        start, end = end, end + prod(target.shape) * width
        header[target.name] = {"dtype": kind, "shape": target.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in _converted(gguf, targets, progress):
            file.write(values.data.cast("B"))


def _stored(tensor: GgufTensor) -> tuple[str, int]:
    """The safetensors type that holds a tensor's values exactly, and its bytes a value."""
    return (tensor.type.name, 2) if tensor.type.name in ("F16", "BF16") else ("F32", 4)


def _converted(
    gguf: GgufFile, targets: list[tuple[GgufTensor, _Target]], progress: Progress
) -> Iterator[NDArray[Any]]:
    import numpy as np

    data = np.memmap(gguf.path, dtype=np.uint8, mode="r")
    total, done = sum(tensor.num_bytes for tensor, _ in targets), 0
    for tensor, target in targets:
        progress("importing", done, total)
        values = tensor_values(data, tensor)
        yield np.ascontiguousarray(_grouped(values, target.interleaved_heads))
        done += tensor.num_bytes
    progress("importing", total, total)


def _grouped(values: NDArray[np.generic], heads: int) -> NDArray[Any]:
    """Undo llama.cpp's order of Q and K rows: rotated pairs lie side by side there, in two halves here."""
    if not heads:
        return values
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _write_through_transformers(gguf: GgufFile, folder: Path, progress: Progress) -> None:
    """The slow way, for architectures that transformers can read and our table can't."""
    raise NotImplementedError
