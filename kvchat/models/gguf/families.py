"""What a GGUF's architecture is in transformers' terms: config, tensors by name and shape; reads and writes no weights.

A new architecture is a row in `FAMILIES`, as long as its layers are plain attention and a gated feed-forward.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.gguf.file import GgufFile, GgufTensor
from kvchat.models.gguf.keys import ELSEWHERE, Keys, stored_dtype
from kvchat.models.gguf.rope import rope_parameters
from kvchat.models.gguf.tokenizer import special_id, vocabulary_size

_SIZES = (
    *("embedding_length", "feed_forward_length", "block_count", "context_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    "attention.layer_norm_rms_epsilon",
)
MAX_CONTEXT = 1 << 31
"""In tokens: no model says that it reads more."""


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
class ModelShape:
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
    def of(cls, gguf: GgufFile) -> ModelShape:
        """The sizes. Raises ModelUnavailableError when one is missing or they contradict each other."""
        hidden, heads = gguf.integer("embedding_length"), gguf.integer("attention.head_count")
        rotated = gguf.integer("rope.dimension_count", hidden // heads)
        embedding = gguf.tensors.get("token_embd.weight")
        shape = cls(
            layers=gguf.integer("block_count"),
            hidden=hidden,
            feed_forward=gguf.integer("feed_forward_length"),
            heads=heads,
            kv_heads=gguf.integer("attention.head_count_kv", heads),
            head_dim=gguf.integer("attention.key_length", rotated),
            vocabulary=embedding.shape[0] if embedding else 0,
            context=gguf.integer("context_length"),
        )
        if shape._is_consistent(gguf):
            return shape
        raise ModelUnavailableError(
            f"{gguf.path} contradicts itself about the model's sizes", "fetch it again"
        )

    def _is_consistent(self, gguf: GgufFile) -> bool:
        has_layers = self.layers <= len(gguf.tensors)
        has_tokens = vocabulary_size(gguf) <= self.vocabulary and self.context <= MAX_CONTEXT
        return has_layers and has_tokens and not self.heads % self.kv_heads and not self.head_dim % 2


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor as transformers wants it, and how many heads its rows come interleaved by."""

    name: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0


def family_of(gguf: GgufFile) -> Family | None:
    """The row of a file's architecture, if its layers are plain."""
    has_experts = bool(gguf.metadata.get(f"{gguf.architecture}.expert_count"))
    return None if has_experts else FAMILIES.get(gguf.architecture)


def model_config(gguf: GgufFile, family: Family, shape: ModelShape) -> dict[str, Any]:
    """What config.json says. Raises ModelUnavailableError for a key that is not understood, and where positions are
    scaled in an unknown way."""
    keys = Keys(gguf)
    for key in _SIZES:
        keys.value(key)
    keys.expect("attention.value_length", shape.head_dim)
    keys.expect("expert_count", 0)
    keys.expect("expert_used_count", 0)
    keys.expect("attention.sliding_window", 0)
    rope = rope_parameters(keys, head_dim=shape.head_dim, context=shape.context)
    if "partial_rotary_factor" in rope:
        raise ModelUnavailableError(f"{gguf.path} rotates a part of each head only", ELSEWHERE)
    keys.check_all_read()
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
        "rope_parameters": rope,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "dtype": stored_dtype(gguf),
    }
    if not family.has_qkv_bias:
        config["attention_bias"] = _has_bias(gguf)
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{role}_token_id"] = special_id(gguf, key)
    return config


def _has_bias(gguf: GgufFile) -> bool:
    return "blk.0.attn_q.bias" in gguf.tensors


def expected_tensors(gguf: GgufFile, family: Family, shape: ModelShape) -> dict[str, Target]:
    """Every tensor that the model has, by its name in the GGUF."""
    targets = {
        "token_embd.weight": Target("model.embed_tokens.weight", (shape.vocabulary, shape.hidden)),
        "output_norm.weight": Target("model.norm.weight", (shape.hidden,)),
    }
    if "output.weight" in gguf.tensors:
        targets["output.weight"] = Target("lm_head.weight", (shape.vocabulary, shape.hidden))
    block = _block(family, shape, has_bias=_has_bias(gguf))
    for layer in range(shape.layers):
        for name, target in block.items():
            full_name = f"model.layers.{layer}.{target.name}"
            targets[f"blk.{layer}.{name}"] = Target(full_name, target.shape, target.interleaved_heads)
    return targets


def _block(family: Family, shape: ModelShape, *, has_bias: bool) -> dict[str, Target]:
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
        "attn_norm.weight": Target("input_layernorm.weight", (shape.hidden,)),
        "ffn_norm.weight": Target("post_attention_layernorm.weight", (shape.hidden,)),
    }
    for source, (name, rows, columns, heads) in linear.items():
        targets[f"{source}.weight"] = Target(f"{name}.weight", (rows, columns), heads)
        if source in biased and (family.has_qkv_bias or has_bias):
            targets[f"{source}.bias"] = Target(f"{name}.bias", (rows,), heads)
    if family.has_qk_norm:
        targets["attn_q_norm.weight"] = Target("self_attn.q_norm.weight", (shape.head_dim,))
        targets["attn_k_norm.weight"] = Target("self_attn.k_norm.weight", (shape.head_dim,))
    return targets


def matched_tensors(gguf: GgufFile, expected: Mapping[str, Target]) -> list[tuple[GgufTensor, Target]]:
    """The file's tensors with their targets. Raises when one is missing, unknown or of another shape."""
    ignored = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd")
    unknown = [name for name in gguf.tensors if name not in expected and not ignored.fullmatch(name)]
    missing = [name for name in expected if name not in gguf.tensors]
    for names, verb in ((missing, "lacks"), (unknown, "has the unknown")):
        if names:
            message = f"{gguf.path} ({gguf.architecture}) {verb} tensor {names[0][:60]}"
            raise ModelUnavailableError(message, ELSEWHERE)
    for name, target in expected.items():
        if gguf.tensors[name].shape != target.shape:
            message = f"{gguf.path}: tensor {name} is {gguf.tensors[name].shape}, not {target.shape}"
            raise ModelUnavailableError(message, "fetch the file again")
    return [(gguf.tensors[name], target) for name, target in expected.items()]
