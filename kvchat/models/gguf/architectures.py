"""The table of llama.cpp's architectures in transformers' terms: which keys each reads, and where its tensors go.

A row is a family's name there, the sizes and switches of its config, and the rules of its tensors. What a row does not
ask for is refused by `Keys.check_all_read`, and a tensor without a rule is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kvchat.models.gguf.keys import Keys, windows
from kvchat.models.gguf.rules import (
    Rule,
    experts,
    latent_keys_and_values,
    minus_one,
    paired_rows,
    turned_experts,
    woven_experts,
)

Settings = dict[str, Any]
_RMS, _NORM = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"

TOP: Mapping[str, Rule] = {
    "token_embd": Rule("model.embed_tokens"),
    "output_norm": Rule("model.norm"),
    "output": Rule("lm_head"),
}
DENSE: Mapping[str, Rule] = {
    "attn_norm": Rule("input_layernorm"),
    "attn_q": Rule("self_attn.q_proj"),
    "attn_k": Rule("self_attn.k_proj"),
    "attn_v": Rule("self_attn.v_proj"),
    "attn_output": Rule("self_attn.o_proj"),
    "ffn_norm": Rule("post_attention_layernorm"),
    "ffn_gate": Rule("mlp.gate_proj"),
    "ffn_up": Rule("mlp.up_proj"),
    "ffn_down": Rule("mlp.down_proj"),
}
_HEAD_NORMS = {"attn_q_norm": Rule("self_attn.q_norm"), "attn_k_norm": Rule("self_attn.k_norm")}
_PAIRED = {
    "attn_q": Rule("self_attn.q_proj", paired_rows("num_attention_heads")),
    "attn_k": Rule("self_attn.k_proj", paired_rows("num_key_value_heads")),
}
_SWIGLU = {"ffn_up": Rule("mlp.gate_up_proj"), "ffn_down": Rule("mlp.down_proj")}


def expert_rules(module: str = "mlp", gate: str = "gate") -> dict[str, Rule]:
    """A router and the experts that it chooses from."""
    return {
        "ffn_gate_inp": Rule(f"{module}.{gate}"),
        "ffn_gate_exps.weight": Rule(f"{module}.experts.gate_up_proj", experts, 0),
        "ffn_up_exps.weight": Rule(f"{module}.experts.gate_up_proj", experts, 1),
        "ffn_down_exps.weight": Rule(f"{module}.experts.down_proj"),
    }


def shared_rules(module: str) -> dict[str, Rule]:
    """The expert that every token goes through."""
    return {f"ffn_{part}_shexp": Rule(f"{module}.{part}_proj") for part in ("gate", "up", "down")}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row. `settings` adds to the sizes that all have what this family's config says beside them; `unsaid` are those
    that its config works out itself."""

    model_type: str
    settings: Callable[[Keys, Settings], Settings] = lambda keys, config: {}
    block: Mapping[str, Rule] = field(default_factory=lambda: DENSE)
    top: Mapping[str, Rule] = field(default_factory=lambda: TOP)
    epsilon: tuple[str, str] = (_RMS, "rms_norm_eps")
    layers: str = "model.layers"
    rotates: bool = True
    unsaid: tuple[str, ...] = ()


def _biases(keys: Keys, config: Settings) -> Settings:
    """Whether projections have biases, as the tensors tell."""
    return {
        "attention_bias": keys.has_tensor("blk.0.attn_q.bias"),
        "mlp_bias": keys.has_tensor("blk.0.ffn_up.bias"),
    }


def _mixture(keys: Keys, config: Settings) -> Settings:
    keys.expect("expert_gating_func", 0, 1)
    keys.expect("expert_weights_norm", True)
    keys.expect("expert_weights_scale", 0.0, 1.0)
    count, used = keys.whole("expert_count"), keys.whole("expert_used_count")
    return {"num_local_experts": count, "num_experts": count, "num_experts_per_tok": used}


def _qwen_mixture(keys: Keys, config: Settings) -> Settings:
    size = keys.whole("expert_feed_forward_length")
    more = {"moe_intermediate_size": size, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return _mixture(keys, config) | more | {"norm_topk_prob": True}


def _qwen2_mixture(keys: Keys, config: Settings) -> Settings:
    shared = keys.whole("expert_shared_feed_forward_length")
    return _qwen_mixture(keys, config) | {"norm_topk_prob": False, "shared_expert_intermediate_size": shared}


def _gemma(keys: Keys, config: Settings) -> Settings:
    return {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}


def _gemma2(keys: Keys, config: Settings) -> Settings:
    layers = config["num_hidden_layers"]
    keys.expect("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    by_head = config["hidden_size"] // config["num_attention_heads"] if layers == 46 else config["head_dim"]
    return _gemma(keys, config) | {
        "sliding_window": keys.whole("attention.sliding_window"),
        "layer_types": windows(keys, layers, period=2),
        "query_pre_attn_scalar": by_head,
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
    }


def _gemma3(keys: Keys, config: Settings) -> Settings:
    layers = config["num_hidden_layers"]
    by_head = config["hidden_size"] // config["num_attention_heads"] if layers == 62 else config["head_dim"]
    near = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 10000.0)}
    return _gemma(keys, config) | {
        "sliding_window": keys.whole("attention.sliding_window"),
        "layer_types": windows(keys, layers, period=6),
        "query_pre_attn_scalar": by_head,
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": near},
    }


def _phi3(keys: Keys, config: Settings) -> Settings:
    # llama.cpp computes without the windows that some files state
    original = keys.value("rope.scaling.original_context_length", config["max_position_embeddings"])
    window = keys.whole("attention.sliding_window", 0) or None
    return {"sliding_window": window, "original_max_position_embeddings": original, "attention_bias": False}


def _mistral3(keys: Keys, config: Settings) -> Settings:
    rope = dict(config["rope_parameters"])
    beta = keys.number("attention.temperature_scale", 0.0)
    rope["llama_4_scaling_beta"] = beta
    rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return {"rope_parameters": rope, "sliding_window": None}


def _gpt_oss(keys: Keys, config: Settings) -> Settings:
    size = keys.whole("expert_feed_forward_length")
    keys.expect("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    return _mixture(keys, config) | {
        "intermediate_size": size,
        "sliding_window": keys.whole("attention.sliding_window"),
        "layer_types": windows(keys, config["num_hidden_layers"], period=2),
        "attention_bias": True,
    }


def _olmo(keys: Keys, config: Settings) -> Settings:
    return {"clip_qkv": keys.number("attention.clamp_kqv", 0.0) or None, "attention_bias": False}


def _olmo2(keys: Keys, config: Settings) -> Settings:
    window = keys.whole("attention.sliding_window", 0)
    if not window:
        return {"attention_bias": False}
    keys.expect("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    types = windows(keys, config["num_hidden_layers"], period=4)
    return {"model_type": "olmo3", "sliding_window": window, "layer_types": types, "attention_bias": False}


def _granite(keys: Keys, config: Settings) -> Settings:
    return _biases(keys, config) | {
        "attention_multiplier": keys.number("attention.scale", 0.0) or config["head_dim"] ** -0.5,
        "embedding_multiplier": keys.number("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": keys.number("residual_scale", 0.0) or 1.0,
        "logits_scaling": keys.number("logit_scale", 0.0) or 1.0,
    }


def _granite_mixture(keys: Keys, config: Settings) -> Settings:
    keys.expect("expert_shared_feed_forward_length", 0)
    return _granite(keys, config) | _mixture(keys, config)


def _smollm3(keys: Keys, config: Settings) -> Settings:
    rotates = [int((layer + 1) % 4 != 0) for layer in range(config["num_hidden_layers"])]
    return _biases(keys, config) | {"no_rope_layers": rotates, "use_sliding_window": False}


def _cohere(keys: Keys, config: Settings) -> Settings:
    return {
        "logit_scale": keys.number("logit_scale"),
        "use_qk_norm": keys.has_tensor("blk.0.attn_q_norm.weight"),
    }


def _cohere2(keys: Keys, config: Settings) -> Settings:
    keys.expect("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    return {
        "logit_scale": keys.number("logit_scale"),
        "sliding_window": keys.whole("attention.sliding_window"),
        "layer_types": windows(keys, config["num_hidden_layers"], period=4),
    }


def _exaone4(keys: Keys, config: Settings) -> Settings:
    layers, window = config["num_hidden_layers"], keys.whole("attention.sliding_window", 0)
    types = windows(keys, layers, period=4) if window else ["full_attention"] * layers
    return {"sliding_window": window or None, "layer_types": types, "sliding_window_pattern": 4}


def _seed_oss(keys: Keys, config: Settings) -> Settings:
    out = keys.has_tensor("blk.0.attn_output.bias")
    return _biases(keys, config) | {"attention_out_bias": out, "residual_dropout": 0.0}


def _hunyuan(keys: Keys, config: Settings) -> Settings:
    return {"attention_bias": keys.has_tensor("blk.0.attn_q.bias"), "use_qk_norm": True}


def _ernie(keys: Keys, config: Settings) -> Settings:
    return {"use_bias": keys.has_tensor("blk.0.attn_q.bias")}


def _starcoder2(keys: Keys, config: Settings) -> Settings:
    return {
        "use_bias": keys.has_tensor("blk.0.attn_q.bias"),
        "sliding_window": None,
        "hidden_act": "gelu_pytorch_tanh",
    }


def _stablelm(keys: Keys, config: Settings) -> Settings:
    parallel = not keys.has_tensor("blk.0.ffn_norm.weight")
    keys.expect("use_parallel_residual", parallel)
    return {"use_qkv_bias": keys.has_tensor("blk.0.attn_q.bias"), "use_parallel_residual": parallel}


def _nemotron(keys: Keys, config: Settings) -> Settings:
    keys.value(_RMS)  # written beside the one that counts
    return _biases(keys, config) | {"hidden_act": "relu2"}


def _deepseek(keys: Keys, config: Settings) -> Settings:
    rotated = keys.whole("rope.dimension_count")
    rope = {key: item for key, item in config["rope_parameters"].items() if key != "partial_rotary_factor"}
    if rope["rope_type"] != "default":
        keys.expect("rope.scaling.type", "none")  # its attention scale depends on it, which is not done here
    latent, size = keys.whole("attention.kv_lora_rank"), keys.whole("attention.key_length_mla")
    keys.value("attention.value_length")
    is_v3 = keys.value("expert_gating_func", 1) == 2  # sigmoid, with a bias for each expert
    keys.expect("expert_gating_func", 0, 1, 2)
    return {
        "model_type": "deepseek_v3" if is_v3 else "deepseek_v2",
        "rope_parameters": rope,
        "num_key_value_heads": config["num_attention_heads"],
        "head_dim": rotated,
        "q_lora_rank": keys.whole("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": latent,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": size - rotated,
        "v_head_dim": keys.whole("attention.value_length_mla"),
        "n_routed_experts": keys.whole("expert_count"),
        "num_experts_per_tok": keys.whole("expert_used_count"),
        "n_shared_experts": keys.whole("expert_shared_count"),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length"),
        "first_k_dense_replace": keys.whole("leading_dense_block_count", 0),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
        "n_group": keys.whole("expert_group_count", 1) or 1,
        "topk_group": keys.whole("expert_group_used_count", 1) or 1,
        "topk_method": "greedy" if keys.whole("expert_group_count", 1) < 2 else "group_limited_greedy",
    }


_GEMMA_NORMS = {"attn_norm": Rule("input_layernorm", minus_one)}
_GEMMA_TOP = {**TOP, "output_norm": Rule("model.norm", minus_one)}
_GEMMA2_BLOCK = {
    **DENSE,
    **_GEMMA_NORMS,
    "post_attention_norm": Rule("post_attention_layernorm", minus_one),
    "ffn_norm": Rule("pre_feedforward_layernorm", minus_one),
    "post_ffw_norm": Rule("post_feedforward_layernorm", minus_one),
}
_GEMMA3_HEADS = {
    "attn_q_norm": Rule("self_attn.q_norm", minus_one),
    "attn_k_norm": Rule("self_attn.k_norm", minus_one),
}
_POST_NORMS = {
    **DENSE,
    **_HEAD_NORMS,
    "post_attention_norm": Rule("post_attention_layernorm"),
    "post_ffw_norm": Rule("post_feedforward_layernorm"),
}
_GPT_OSS_EXPERTS = {
    "ffn_gate_inp": Rule("mlp.router"),
    "ffn_gate_exps.weight": Rule("mlp.experts.gate_up_proj", woven_experts, 0),
    "ffn_up_exps.weight": Rule("mlp.experts.gate_up_proj", woven_experts, 1),
    "ffn_gate_exps.bias": Rule("mlp.experts.gate_up_proj_bias", woven_experts, 0),
    "ffn_up_exps.bias": Rule("mlp.experts.gate_up_proj_bias", woven_experts, 1),
    "ffn_down_exps.weight": Rule("mlp.experts.down_proj", turned_experts),
    "ffn_down_exps.bias": Rule("mlp.experts.down_proj_bias"),
    "attn_sinks.weight": Rule("self_attn.sinks"),
    "post_attention_norm": Rule("post_attention_layernorm"),
}
_LATENT = {
    "attn_q_a": Rule("self_attn.q_a_proj"),
    "attn_q_a_norm": Rule("self_attn.q_a_layernorm"),
    "attn_q_b": Rule("self_attn.q_b_proj"),
    "attn_kv_a_mqa": Rule("self_attn.kv_a_proj_with_mqa"),
    "attn_kv_a_norm": Rule("self_attn.kv_a_layernorm"),
    "attn_k_b.weight": Rule("self_attn.kv_b_proj.weight", latent_keys_and_values, 0),
    "attn_v_b.weight": Rule("self_attn.kv_b_proj.weight", latent_keys_and_values, 1),
    "exp_probs_b.bias": Rule("mlp.gate.e_score_correction_bias"),
}
_LAYER_NORM = (_NORM, "layer_norm_eps")
_PLUS_ONE_NORMS = {
    "attn_norm.weight": Rule("input_layernorm.weight", minus_one),
    "ffn_norm.weight": Rule("post_attention_layernorm.weight", minus_one),
}


STOCK: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama-experts": Architecture("mixtral", _mixture, {**DENSE, **_PAIRED, **expert_rules()}),
        "qwen2moe": Architecture(
            "qwen2_moe",
            _qwen2_mixture,
            {
                **DENSE,
                **expert_rules(),
                **shared_rules("mlp.shared_expert"),
                "ffn_gate_inp_shexp": Rule("mlp.shared_expert_gate"),
            },
        ),
        "qwen3moe": Architecture("qwen3_moe", _qwen_mixture, {**DENSE, **_HEAD_NORMS, **expert_rules()}),
        "gemma": Architecture(
            "gemma",
            _gemma,
            {**DENSE, **_GEMMA_NORMS, "ffn_norm": Rule("post_attention_layernorm", minus_one)},
            _GEMMA_TOP,
        ),
        "gemma2": Architecture("gemma2", _gemma2, _GEMMA2_BLOCK, _GEMMA_TOP),
        "gemma3": Architecture("gemma3_text", _gemma3, {**_GEMMA2_BLOCK, **_GEMMA3_HEADS}, _GEMMA_TOP),
        "phi3": Architecture("phi3", _phi3, {**DENSE, **_SWIGLU, "attn_qkv": Rule("self_attn.qkv_proj")}),
        "mistral3": Architecture("ministral3", _mistral3, {**DENSE, **_PAIRED}),
        "gpt-oss": Architecture("gpt_oss", _gpt_oss, {**DENSE, **_GPT_OSS_EXPERTS}),
        "olmo": Architecture("olmo", _olmo, {**DENSE, **_PAIRED}, epsilon=(_NORM, "layer_norm_eps")),
        "olmo2": Architecture("olmo2", _olmo2, _POST_NORMS),
        "granite": Architecture("granite", _granite, {**DENSE, **_PAIRED}),
        "granitemoe": Architecture(
            "granitemoe", _granite_mixture, {**DENSE, **_PAIRED, **expert_rules("block_sparse_moe", "router")}
        ),
        "smollm3": Architecture("smollm3", _smollm3, {**DENSE, **_PAIRED}),
        "glm4": Architecture(
            "glm4",
            _biases,
            {
                **DENSE,
                **_SWIGLU,
                "post_attention_norm": Rule("post_self_attn_layernorm"),
                "post_ffw_norm": Rule("post_mlp_layernorm"),
            },
        ),
        "command-r": Architecture("cohere", _cohere, {**DENSE, **_HEAD_NORMS}, epsilon=_LAYER_NORM),
        "cohere2": Architecture("cohere2", _cohere2, epsilon=_LAYER_NORM),
        "exaone4": Architecture("exaone4", _exaone4, _POST_NORMS),
        "seed_oss": Architecture(
            "seed_oss", _seed_oss, {**DENSE, "post_attention_norm": Rule("post_attention_layernorm")}
        ),
        "hunyuan-dense": Architecture(
            "hunyuan_v1_dense",
            _hunyuan,
            {
                **DENSE,
                "attn_q_norm": Rule("self_attn.query_layernorm"),
                "attn_k_norm": Rule("self_attn.key_layernorm"),
            },
        ),
        "ernie4_5": Architecture("ernie4_5", _ernie),
        "starcoder2": Architecture(
            "starcoder2",
            _starcoder2,
            {**DENSE, "ffn_up": Rule("mlp.c_fc"), "ffn_down": Rule("mlp.c_proj")},
            epsilon=(_NORM, "norm_epsilon"),
        ),
        "stablelm": Architecture("stablelm", _stablelm, epsilon=_LAYER_NORM),
        "nemotron": Architecture(
            "nemotron",
            _nemotron,
            {**DENSE, **_PLUS_ONE_NORMS},
            {**TOP, "output_norm.weight": Rule("model.norm.weight", minus_one)},
            epsilon=(_NORM, "norm_eps"),
        ),
        "deepseek2": Architecture(
            "deepseek_v3",
            _deepseek,
            {**DENSE, **_LATENT, **expert_rules(), **shared_rules("mlp.shared_experts")},
        ),
    }
)
"""By llama.cpp's name."""
