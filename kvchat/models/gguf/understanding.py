"""What a GGUF's architecture is to transformers: a config, and each tensor made of the file's; refuses what is left over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import shown
from kvchat.models.gguf.architectures import STOCK, Architecture
from kvchat.models.gguf.delta_architectures import DELTA
from kvchat.models.gguf.file import GgufFile, GgufTensor
from kvchat.models.gguf.keys import ELSEWHERE, Keys, stored_dtype
from kvchat.models.gguf.older_architectures import OLDER
from kvchat.models.gguf.rope import rope_parameters
from kvchat.models.gguf.rules import Make, Rule
from kvchat.models.gguf.tokenizer import special_id, vocabulary_size

_MAX_CONTEXT = 1 << 31
_FACTORS = frozenset(("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"))
"""Tensors that the config tells in other words."""
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Source:
    """What one of transformers' tensors is made of: the file's tensors, in order, and how."""

    tensors: tuple[GgufTensor, ...]
    make: Make


@dataclass(frozen=True, slots=True)
class Understood:
    """A file that transformers can run: its config.json, and the sources of its tensors by transformers' names."""

    config: Mapping[str, Any]
    sources: Mapping[str, Source]


def architecture_of(gguf: GgufFile) -> Architecture | None:
    """The row of a file's architecture; None where there is none."""
    name = gguf.architecture
    if name == "llama" and gguf.metadata.get("llama.expert_count"):
        name = "llama-experts"
    if name == "falcon" and "blk.0.attn_norm_2.weight" in gguf.tensors:
        name = "falcon-two-norms"
    return STOCK.get(name) or OLDER.get(name) or DELTA.get(name)


def understand(gguf: GgufFile) -> Understood:
    """All that a file says. Raises ModelUnavailableError for an architecture, a key or a tensor that is not understood."""
    architecture = architecture_of(gguf)
    if architecture is None:
        raise ModelUnavailableError(
            f"{gguf.path} is of the unknown architecture {shown(gguf.architecture)}", ELSEWHERE
        )
    keys = Keys(gguf)
    config = _config(keys, architecture)
    keys.check_all_read()
    return Understood(config, _sources(gguf, architecture, config["num_hidden_layers"]))


def _config(keys: Keys, architecture: Architecture) -> dict[str, Any]:
    config = _sizes(keys) | {
        "model_type": architecture.model_type,
        architecture.epsilon[1]: keys.number(architecture.epsilon[0]),
        "tie_word_embeddings": not keys.has_tensor("output.weight"),
        "dtype": stored_dtype(keys.gguf),
    }
    if architecture.rotates:
        sizes = {"head_dim": config["head_dim"], "context": config["max_position_embeddings"]}
        config["rope_parameters"] = rope_parameters(keys, **sizes)
        if "partial_rotary_factor" in config["rope_parameters"]:
            config["partial_rotary_factor"] = config["rope_parameters"]["partial_rotary_factor"]
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{role}_token_id"] = special_id(keys.gguf, key)
    whole = config | architecture.settings(keys, config)
    return {key: item for key, item in whole.items() if key not in architecture.unsaid}


def _sizes(keys: Keys) -> dict[str, Any]:
    """What every architecture states. Raises ModelUnavailableError where the file's numbers contradict each other."""
    gguf = keys.gguf
    hidden, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    embedding = gguf.tensors.get("token_embd.weight")
    by_heads = hidden // heads if heads else 0
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": keys.whole("feed_forward_length", 0),
        "num_hidden_layers": keys.whole("block_count") - keys.whole("nextn_predict_layers", 0),
        "num_attention_heads": heads,
        "num_key_value_heads": _kv_heads(keys, heads),
        "head_dim": keys.whole("attention.key_length", by_heads),
        "vocab_size": embedding.shape[0] if embedding else 0,
        "max_position_embeddings": keys.whole("context_length"),
    }
    keys.expect("attention.causal", True)
    if (
        keys.value("attention.key_length_mla") is None
    ):  # latent attention tells the sizes of its heads elsewhere
        keys.expect("attention.value_length", sizes["head_dim"])
    largest = max((size for tensor in gguf.tensors.values() for size in tensor.shape), default=0)
    if not (
        0 < sizes["num_hidden_layers"] <= len(gguf.tensors)
        and vocabulary_size(gguf) <= sizes["vocab_size"]
        and max(hidden, heads, sizes["head_dim"]) <= max(largest, 1 << 16)
        and heads % max(1, sizes["num_key_value_heads"]) == 0
    ):
        raise ModelUnavailableError(
            f"{gguf.path} contradicts itself about the model's sizes", "fetch it again"
        )
    return sizes


def _kv_heads(keys: Keys, heads: int) -> int:
    """How many heads K and V have, where they are the same in all layers; families where they are not look again."""
    by_layer = keys.layers("attention.head_count_kv")
    return max(by_layer) if by_layer else keys.whole("attention.head_count_kv", heads)


def _sources(gguf: GgufFile, architecture: Architecture, num_layers: int) -> dict[str, Source]:
    """What is made of the file; layers behind the model's own only guess ahead, and are left out."""
    found: dict[str, dict[int, tuple[Rule, GgufTensor]]] = {}
    for name, tensor in gguf.tensors.items():
        block = _BLOCK.fullmatch(name)
        is_ahead = block is not None and int(block[1]) >= num_layers
        if name in _FACTORS or is_ahead or name.removesuffix(".weight").endswith("attn_rot_embd"):
            continue
        target, rule = _target(name, architecture) or (None, None)
        if target is None or rule is None:
            message = f"{gguf.path} ({gguf.architecture}) has the unknown tensor {name[:60]}"
            raise ModelUnavailableError(message, ELSEWHERE)
        found.setdefault(target, {})[rule.place] = (rule, tensor)
    return {target: _source(gguf, architecture, parts) for target, parts in found.items()}


def _source(
    gguf: GgufFile, architecture: Architecture, parts: Mapping[int, tuple[Rule, GgufTensor]]
) -> Source:
    """What one of transformers' tensors is made of. Raises ModelUnavailableError where a part of it is missing."""
    rule, tensor = next(iter(parts.values()))
    places = {other.place for other in architecture.block.values() if other.name == rule.name} | {rule.place}
    if parts.keys() != places:
        message = f"{gguf.path} ({gguf.architecture}) lacks what belongs to tensor {tensor.name[:60]}"
        raise ModelUnavailableError(message, ELSEWHERE)
    return Source(tuple(parts[place][1] for place in sorted(parts)), rule.make)


def _target(name: str, architecture: Architecture) -> tuple[str, Rule] | None:
    """Transformers' name for a tensor, and its rule: that of its whole name, or else that of its module."""
    block = _BLOCK.fullmatch(name)
    rules, rest = (architecture.block, block[2]) if block else (architecture.top, name)
    layer = f"{architecture.layers}.{block[1]}." if block else ""
    if rest in rules:
        return f"{layer}{rules[rest].name}", rules[rest]
    module, _, kind = rest.rpartition(".")
    if module in rules and kind in ("weight", "bias"):
        return f"{layer}{rules[module].name}.{kind}", rules[module]
    return None
