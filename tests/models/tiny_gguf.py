"""Tiny random models written as GGUF files, the way llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "i n", "Ġw o"]
VOCABULARY = 320
HEADS, KV_HEADS = 4, 2

_BLOCK_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_GEMMA2_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_SCALES_AT = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,), Type.Q2_K: (80, 82)}
_SCALES_AT |= {Type.Q3_K: (108,), Type.IQ1_M: (), Type.Q8_K: ()}
_SCALES_AT |= dict.fromkeys((Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ3_XXS, Type.IQ3_S), (0,))
_SCALES_AT |= dict.fromkeys((Type.IQ1_S, Type.IQ4_NL, Type.IQ4_XS), (0,))


def tiny_hf_model(
    family: str = "llama", *, hidden: int = 64, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A random float32 model with norms and biases that matter."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": hidden // HEADS,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = AutoConfig.for_model(family, **(shape | overrides))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model


def write_gguf(
    path: Path,
    model: PreTrainedModel | None = None,
    *,
    tensor_type: Type = Type.F32,
    part_tensors: int = 0,
    **metadata: Any,
) -> PreTrainedModel:
    """Write `model` (by default a tiny llama) as a GGUF file; `metadata` None removes a key, `__` stands for a dot.

    With `part_tensors` it becomes several files of so many tensors each, `path` with what llama.cpp adds to its name.
    """
    model = model or tiny_hf_model()
    family = model.config.model_type
    writer = gguf.GGUFWriter(str(path), family, split_max_tensors=part_tensors)
    for key, value in (_metadata(model, family) | _dotted(metadata)).items():
        if value is not None:
            _add(writer, key, value)
    for name, values in gguf_tensors(model).items():
        quantised = tensor_type if values.ndim == 2 else Type.F32
        writer.add_tensor(name, _stored(values, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def gguf_tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The model's weights under llama.cpp's names, with its order of Q and K rows."""
    tensors = {}
    for name, parameter in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module == "lm_head" and model.config.tie_word_embeddings:
            continue
        values = parameter.numpy()
        if model.config.model_type == "llama" and module.endswith(("q_proj", "k_proj")):
            values = interleaved(values, HEADS if module.endswith("q_proj") else KV_HEADS)
        if model.config.model_type == "gemma2" and "norm" in module:
            values = values + 1
        tensors[f"{_gguf_name(module, model.config.model_type)}.{kind}"] = np.ascontiguousarray(values)
    rope = model.config.rope_parameters
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** (-np.arange(0, model.config.head_dim, 2) / model.config.head_dim)
        tensors["rope_freqs.weight"] = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    return tensors


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: the two halves of each head become pairs."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _gguf_name(module: str, family: str) -> str:
    if module in _TOP_NAMES:
        return _TOP_NAMES[module]
    layer, _, rest = module.removeprefix("model.layers.").partition(".")
    names = _BLOCK_NAMES | (_GEMMA2_NAMES if family == "gemma2" else {})
    return f"blk.{layer}.{names[rest]}"


def _stored(values: np.ndarray, kind: Type) -> np.ndarray:
    if kind not in _SCALES_AT:
        return gguf.quantize(values, kind)
    # the package can't quantise to these: any bytes are a block, as long as its fp16 scales are finite
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(values.size).integers(
        0, 256, (values.size // block_size, block_bytes), np.uint8
    )
    for start in _SCALES_AT[kind]:
        blocks[:, start : start + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    return blocks.reshape(values.shape[0], -1)


def _metadata(model: PreTrainedModel, family: str) -> dict[str, Any]:
    config = model.config
    alphabet = sorted(
        {chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256)]}
        | {chr(256 + i) for i in range(68)}
    )
    tokens = [*SPECIAL, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]
    tokens += [f"<|unused_{index}|>" for index in range(VOCABULARY - len(tokens))]
    kinds = [3 if token.startswith("<|") else 1 for token in tokens]
    return {
        f"{family}.context_length": config.max_position_embeddings,
        f"{family}.embedding_length": config.hidden_size,
        f"{family}.block_count": config.num_hidden_layers,
        f"{family}.feed_forward_length": config.intermediate_size,
        f"{family}.attention.head_count": config.num_attention_heads,
        f"{family}.attention.head_count_kv": config.num_key_value_heads,
        f"{family}.attention.key_length": config.head_dim if hasattr(config, "head_dim") else None,
        f"{family}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{family}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _dotted(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in metadata.items()}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
