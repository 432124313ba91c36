"""What the config of each family says beside the sizes that all have, read from a GGUF's keys; knows no tensor's place.

Each takes the keys and what is known so far, and returns what it adds. Which keys they are is what llama.cpp's
`load_arch_hparams` reads for the architecture.
"""

from __future__ import annotations

from typing import Any

from kvchat.models.gguf.keys import Keys, windows

Settings = dict[str, Any]
_RMS = "attention.layer_norm_rms_epsilon"


def biases(keys: Keys, config: Settings) -> Settings:
    """Whether projections have biases, as the tensors tell."""
    return {
        "attention_bias": keys.has_tensor("blk.0.attn_q.bias"),
        "mlp_bias": keys.has_tensor("blk.0.ffn_up.bias"),
    }


def mixture(keys: Keys, config: Settings) -> Settings:
    """A router that chooses some of the experts, by softmax."""
    keys.expect("expert_gating_func", 0, 1)
    keys.expect("expert_weights_norm", True)
    keys.expect("expert_weights_scale", 0.0, 1.0)
    count, used = keys.whole("expert_count"), keys.whole("expert_used_count")
    return {"num_local_experts": count, "num_experts": count, "num_experts_per_tok": used}


def qwen_mixture(keys: Keys, config: Settings) -> Settings:
    """Qwen 3's experts."""
    size = keys.whole("expert_feed_forward_length")
    more = {"moe_intermediate_size": size, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return mixture(keys, config) | more | {"norm_topk_prob": True}


def qwen2_mixture(keys: Keys, config: Settings) -> Settings:
    """Qwen 2's, with one that every token goes through."""
    shared = keys.whole("expert_shared_feed_forward_length")
    return qwen_mixture(keys, config) | {"norm_topk_prob": False, "shared_expert_intermediate_size": shared}


def gemma(keys: Keys, config: Settings) -> Settings:
    """Gemma's activation."""
    return {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}


def gemma2(keys: Keys, config: Settings) -> Settings:
    """Windows in every other layer, and soft caps."""
    layers = config["num_hidden_layers"]
    keys.expect("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    by_head = config["hidden_size"] // config["num_attention_heads"] if layers == 46 else config["head_dim"]
    return gemma(keys, config) | {
        "sliding_window": keys.whole("attention.sliding_window"),
        "layer_types": windows(keys, layers, period=2),
        "query_pre_attn_scalar": by_head,
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
    }


def gemma3(keys: Keys, config: Settings) -> Settings:
    """Windows in five of six layers, with a rotation of their own."""
    layers = config["num_hidden_layers"]
    by_head = config["hidden_size"] // config["num_attention_heads"] if layers == 62 else config["head_dim"]
    near = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 10000.0)}
    return gemma(keys, config) | {
        "sliding_window": keys.whole("attention.sliding_window"),
        "layer_types": windows(keys, layers, period=6),
        "query_pre_attn_scalar": by_head,
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": near},
    }


def phi3(keys: Keys, config: Settings) -> Settings:
    """The window, which llama.cpp leaves out, and the context that LongRoPE was made for."""
    # llama.cpp computes without the windows that some files state
    original = keys.value("rope.scaling.original_context_length", config["max_position_embeddings"])
    window = keys.whole("attention.sliding_window", 0) or None
    return {"sliding_window": window, "original_max_position_embeddings": original, "attention_bias": False}


def mistral3(keys: Keys, config: Settings) -> Settings:
    """Queries that grow with the position."""
    rope = dict(config["rope_parameters"])
    beta = keys.number("attention.temperature_scale", 0.0)
    rope["llama_4_scaling_beta"] = beta
    rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return {"rope_parameters": rope, "sliding_window": None}


def gpt_oss(keys: Keys, config: Settings) -> Settings:
    """Experts, windows and sinks."""
    size = keys.whole("expert_feed_forward_length")
    keys.expect("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    return mixture(keys, config) | {
        "intermediate_size": size,
        "sliding_window": keys.whole("attention.sliding_window"),
        "layer_types": windows(keys, config["num_hidden_layers"], period=2),
        "attention_bias": True,
    }


def olmo(keys: Keys, config: Settings) -> Settings:
    """What Q, K and V are clipped to."""
    return {"clip_qkv": keys.number("attention.clamp_kqv", 0.0) or None, "attention_bias": False}


def olmo2(keys: Keys, config: Settings) -> Settings:
    """OLMo 2; with windows it is OLMo 3."""
    window = keys.whole("attention.sliding_window", 0)
    if not window:
        return {"attention_bias": False}
    keys.expect("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    types = windows(keys, config["num_hidden_layers"], period=4)
    return {"model_type": "olmo3", "sliding_window": window, "layer_types": types, "attention_bias": False}


def granite(keys: Keys, config: Settings) -> Settings:
    """Granite's four multipliers."""
    return biases(keys, config) | {
        "attention_multiplier": keys.number("attention.scale", 0.0) or config["head_dim"] ** -0.5,
        "embedding_multiplier": keys.number("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": keys.number("residual_scale", 0.0) or 1.0,
        "logits_scaling": keys.number("logit_scale", 0.0) or 1.0,
    }


def granite_mixture(keys: Keys, config: Settings) -> Settings:
    """The same with experts."""
    keys.expect("expert_shared_feed_forward_length", 0)
    return granite(keys, config) | mixture(keys, config)


def smollm3(keys: Keys, config: Settings) -> Settings:
    """Every fourth layer does not rotate."""
    rotates = [int((layer + 1) % 4 != 0) for layer in range(config["num_hidden_layers"])]
    return biases(keys, config) | {"no_rope_layers": rotates, "use_sliding_window": False}


def cohere(keys: Keys, config: Settings) -> Settings:
    """Command R's scale of logits."""
    return {
        "logit_scale": keys.number("logit_scale"),
        "use_qk_norm": keys.has_tensor("blk.0.attn_q_norm.weight"),
    }


def cohere2(keys: Keys, config: Settings) -> Settings:
    """Windows in three of four layers."""
    keys.expect("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    return {
        "logit_scale": keys.number("logit_scale"),
        "sliding_window": keys.whole("attention.sliding_window"),
        "layer_types": windows(keys, config["num_hidden_layers"], period=4),
    }


def exaone4(keys: Keys, config: Settings) -> Settings:
    """Windows in three of four layers, in the large model."""
    layers, window = config["num_hidden_layers"], keys.whole("attention.sliding_window", 0)
    types = windows(keys, layers, period=4) if window else ["full_attention"] * layers
    return {"sliding_window": window or None, "layer_types": types, "sliding_window_pattern": 4}


def seed_oss(keys: Keys, config: Settings) -> Settings:
    """Its biases."""
    out = keys.has_tensor("blk.0.attn_output.bias")
    return biases(keys, config) | {"attention_out_bias": out, "residual_dropout": 0.0}


def hunyuan(keys: Keys, config: Settings) -> Settings:
    """Its biases."""
    return {"attention_bias": keys.has_tensor("blk.0.attn_q.bias"), "use_qk_norm": True}


def ernie(keys: Keys, config: Settings) -> Settings:
    """Its biases."""
    return {"use_bias": keys.has_tensor("blk.0.attn_q.bias")}


def starcoder2(keys: Keys, config: Settings) -> Settings:
    """Its biases; it has no windows in GGUFs."""
    return {
        "use_bias": keys.has_tensor("blk.0.attn_q.bias"),
        "sliding_window": None,
        "hidden_act": "gelu_pytorch_tanh",
    }


def stablelm(keys: Keys, config: Settings) -> Settings:
    """Whether attention and feed-forward run side by side."""
    parallel = not keys.has_tensor("blk.0.ffn_norm.weight")
    keys.expect("use_parallel_residual", parallel)
    return {"use_qkv_bias": keys.has_tensor("blk.0.attn_q.bias"), "use_parallel_residual": parallel}


def nemotron(keys: Keys, config: Settings) -> Settings:
    """A squared ReLU."""
    keys.value(_RMS)  # written beside the one that counts
    return biases(keys, config) | {"hidden_act": "relu2"}


def deepseek(keys: Keys, config: Settings) -> Settings:
    """Latent attention and experts in groups; version 3 chooses them by sigmoid."""
    rotated = keys.whole("rope.dimension_count")
    rope = {key: item for key, item in config["rope_parameters"].items() if key != "partial_rotary_factor"}
    if rope["rope_type"] == "yarn":
        keys.value("rope.scaling.yarn_log_multiplier")
        multiplier = 10 * keys.gguf.number("rope.scaling.yarn_log_multiplier")  # stored as it is used there
        rope |= {"mscale": multiplier, "mscale_all_dim": multiplier}
    elif rope["rope_type"] != "default":
        keys.expect("rope.scaling.type", "none", "yarn")
    latent, size = keys.whole("attention.kv_lora_rank"), keys.whole("attention.key_length_mla")
    keys.value("attention.value_length")
    is_v3 = keys.value("expert_gating_func", 1) == 2  # sigmoid, with a bias for each expert
    keys.expect("expert_gating_func", 0, 1, 2)
    return {
        "model_type": "deepseek_v3" if is_v3 else "deepseek_v2",
        "rope_parameters": rope,
        "partial_rotary_factor": 1.0,
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
