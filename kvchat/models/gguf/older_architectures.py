"""Rows of the table for families that are named otherwise than Llama, or whose layers carry a state: see `architectures`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kvchat.models.gguf.architectures import DENSE, Architecture, Settings, expert_rules
from kvchat.models.gguf.keys import Keys
from kvchat.models.gguf.rules import (
    Rule,
    bloom_heads,
    convolution,
    falcon_heads,
    logarithm,
    one_row,
    stacked,
    transposed,
)

_NORM = "attention.layer_norm_epsilon"
_RMS = "attention.layer_norm_rms_epsilon"


def _gpt2(keys: Keys, config: Settings) -> Settings:
    return {
        "n_embd": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_positions": config["max_position_embeddings"],
        "n_inner": config["intermediate_size"],
        "tie_word_embeddings": not keys.has_tensor("output.weight"),
    }


def _bloom(keys: Keys, config: Settings) -> Settings:
    keys.expect("attention.max_alibi_bias", 8.0)
    return {"n_layer": config["num_hidden_layers"], "n_head": config["num_attention_heads"]}


def _falcon(keys: Keys, config: Settings) -> Settings:
    is_new = keys.has_tensor("blk.0.attn_norm_2.weight") or config["num_key_value_heads"] > 1
    return {
        "num_kv_heads": config["num_key_value_heads"],
        "new_decoder_architecture": is_new,
        "num_ln_in_parallel_attn": 2 if keys.has_tensor("blk.0.attn_norm_2.weight") else 1,
        "multi_query": config["num_key_value_heads"] == 1,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "ffn_hidden_size": config["intermediate_size"],
    }


def _mamba(keys: Keys, config: Settings) -> Settings:
    inner = keys.whole("ssm.inner_size")
    keys.expect("ssm.dt_b_c_rms", False)
    return {
        "state_size": keys.whole("ssm.state_size"),
        "conv_kernel": keys.whole("ssm.conv_kernel"),
        "time_step_rank": keys.whole("ssm.time_step_rank"),
        "expand": inner / config["hidden_size"]
        if inner % config["hidden_size"]
        else inner // config["hidden_size"],
        "intermediate_size": inner,
        "use_conv_bias": keys.has_tensor("blk.0.ssm_conv1d.bias"),
        "use_bias": keys.has_tensor("blk.0.ssm_in.bias"),
    }


def _mamba2(keys: Keys, config: Settings) -> Settings:
    heads = keys.whole("ssm.time_step_rank")
    rest = {key: item for key, item in _mamba(keys, config).items() if key not in ("time_step_rank",)}
    return rest | {
        "num_heads": heads,
        "head_dim": keys.whole("ssm.inner_size") // heads,
        "n_groups": keys.whole("ssm.group_count"),
    }


def _lfm2(keys: Keys, config: Settings) -> Settings:
    heads = keys.layers("attention.head_count_kv") or []
    kinds = ["full_attention" if count else "conv" for count in heads]
    return {
        "num_key_value_heads": max(heads, default=0),
        "layer_types": kinds,
        "conv_L_cache": keys.whole("shortconv.l_cache"),
        "conv_bias": False,
        "block_auto_adjust_ff_dim": False,
        "block_ff_dim": config["intermediate_size"],
    }


def _ssm(keys: Keys) -> Settings:
    """The sizes of Mamba 2's layers in hybrid families."""
    inner, heads = keys.whole("ssm.inner_size"), keys.whole("ssm.time_step_rank")
    return {
        "mamba_d_ssm": inner,
        "mamba_d_state": keys.whole("ssm.state_size"),
        "mamba_d_conv": keys.whole("ssm.conv_kernel"),
        "mamba_n_groups": keys.whole("ssm.group_count"),
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
    }


def _falcon_h1(keys: Keys, config: Settings) -> Settings:
    # llama.cpp's converter has multiplied the weights by what its config calls multipliers
    has_norm = keys.has_tensor("blk.0.ssm_norm.weight")
    ones = ("embedding", "lm_head", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")
    return _ssm(keys) | {
        "mamba_rms_norm": has_norm,
        "mamba_conv_bias": keys.has_tensor("blk.0.ssm_conv1d.bias"),
        **{f"{name}_multiplier": 1.0 for name in ones},
        "mlp_multipliers": [1.0, 1.0],
        "ssm_multipliers": [1.0] * 5,
    }


def _granite_hybrid(keys: Keys, config: Settings) -> Settings:
    heads = keys.layers("attention.head_count_kv") or []
    return _ssm(keys) | {
        "num_key_value_heads": max(heads, default=0),
        "layer_types": ["attention" if count else "mamba" for count in heads],
        "num_local_experts": keys.whole("expert_count", 0),
        "num_experts_per_tok": keys.whole("expert_used_count", 0),
        "shared_intermediate_size": keys.whole("expert_shared_feed_forward_length"),
        "mamba_expand": keys.whole("ssm.inner_size") // config["hidden_size"],
        "attention_multiplier": keys.number("attention.scale"),
        "embedding_multiplier": keys.number("embedding_scale", 1.0),
        "residual_multiplier": keys.number("residual_scale", 1.0),
        "logits_scaling": keys.number("logit_scale", 1.0),
        "position_embedding_type": "rope" if keys.value("rope.scaling.finetuned", True) else "nope",
    }


_STATE = {
    "ssm_in": Rule("mixer.in_proj"),
    "ssm_conv1d.weight": Rule("mixer.conv1d.weight", convolution),
    "ssm_conv1d.bias": Rule("mixer.conv1d.bias"),
    "ssm_x": Rule("mixer.x_proj"),
    "ssm_a": Rule("mixer.A_log", logarithm),
    "ssm_out": Rule("mixer.out_proj"),
    "attn_norm": Rule("norm"),
}
_STATE_TOP = {
    "token_embd": Rule("backbone.embeddings"),
    "output_norm": Rule("backbone.norm_f"),
    "output": Rule("lm_head"),
}
_MAMBA = {**_STATE, "ssm_dt": Rule("mixer.dt_proj"), "ssm_d": Rule("mixer.D")}
_MAMBA2 = {
    **_STATE,
    "ssm_dt.bias": Rule("mixer.dt_bias"),
    "ssm_d": Rule("mixer.D", one_row),
    "ssm_norm.weight": Rule("mixer.norm.weight", one_row),
}
_HYBRID = {
    name: Rule(rule.name.replace("mixer.", "mamba."), rule.make)
    for name, rule in _MAMBA2.items()
    if name.startswith("ssm_") and name != "ssm_x"
}
_GPT2_BLOCK = {
    "attn_norm": Rule("ln_1"),
    "ffn_norm": Rule("ln_2"),
    "attn_qkv": Rule("attn.c_attn", transposed),
    "attn_output": Rule("attn.c_proj", transposed),
    "ffn_up": Rule("mlp.c_fc", transposed),
    "ffn_down": Rule("mlp.c_proj", transposed),
}
_OLD_BLOCK = {
    "attn_output": Rule("self_attention.dense"),
    "ffn_up": Rule("mlp.dense_h_to_4h"),
    "ffn_down": Rule("mlp.dense_4h_to_h"),
}
_OLD_TOP = {
    "token_embd": Rule("transformer.word_embeddings"),
    "output_norm": Rule("transformer.ln_f"),
    "output": Rule("lm_head"),
}
_LFM2 = {
    **DENSE,
    "attn_norm": Rule("operator_norm"),
    "ffn_norm": Rule("ffn_norm"),
    "attn_q_norm": Rule("self_attn.q_layernorm"),
    "attn_k_norm": Rule("self_attn.k_layernorm"),
    "attn_output": Rule("self_attn.out_proj"),
    "ffn_gate": Rule("feed_forward.w1"),
    "ffn_up": Rule("feed_forward.w3"),
    "ffn_down": Rule("feed_forward.w2"),
    "shortconv.conv.weight": Rule("conv.conv.weight", convolution),
    "shortconv.in_proj": Rule("conv.in_proj"),
    "shortconv.out_proj": Rule("conv.out_proj"),
}
_FALCON_H1 = {
    **DENSE,
    **_HYBRID,
    "ffn_norm": Rule("pre_ff_layernorm.weight"),
    "ffn_norm.weight": Rule("pre_ff_layernorm.weight"),
    "ffn_gate": Rule("feed_forward.gate_proj"),
    "ffn_up": Rule("feed_forward.up_proj"),
    "ffn_down": Rule("feed_forward.down_proj"),
}
_GRANITE_HYBRID = {
    **DENSE,
    **_HYBRID,
    **expert_rules("block_sparse_moe", "router"),
    **{f"ffn_gate{end}.weight": Rule("shared_mlp.input_linear.weight", stacked, 0) for end in ("", "_shexp")},
    **{f"ffn_up{end}.weight": Rule("shared_mlp.input_linear.weight", stacked, 1) for end in ("", "_shexp")},
    **{f"ffn_down{end}": Rule("shared_mlp.output_linear") for end in ("", "_shexp")},
}


def _falcon_row(norms: Mapping[str, Rule]) -> Architecture:
    block = {**_OLD_BLOCK, **norms, "attn_qkv": Rule("self_attention.query_key_value", falcon_heads)}
    epsilon = (_NORM, "layer_norm_epsilon")
    return Architecture("falcon", _falcon, block, _OLD_TOP, epsilon, "transformer.h", unsaid=("head_dim",))


OLDER: Mapping[str, Architecture] = MappingProxyType(
    {
        "gpt2": Architecture(
            "gpt2",
            _gpt2,
            _GPT2_BLOCK,
            {
                "token_embd": Rule("transformer.wte"),
                "position_embd": Rule("transformer.wpe"),
                "output_norm": Rule("transformer.ln_f"),
                "output": Rule("lm_head"),
            },
            (_NORM, "layer_norm_epsilon"),
            "transformer.h",
            rotates=False,
        ),
        "bloom": Architecture(
            "bloom",
            _bloom,
            {
                **_OLD_BLOCK,
                "attn_norm": Rule("input_layernorm"),
                "ffn_norm": Rule("post_attention_layernorm"),
                "attn_qkv": Rule("self_attention.query_key_value", bloom_heads),
            },
            {**_OLD_TOP, "token_embd_norm": Rule("transformer.word_embeddings_layernorm")},
            (_NORM, "layer_norm_epsilon"),
            "transformer.h",
            rotates=False,
        ),
        "falcon": _falcon_row({"attn_norm": Rule("input_layernorm")}),
        "falcon-two-norms": _falcon_row({"attn_norm": Rule("ln_mlp"), "attn_norm_2": Rule("ln_attn")}),
        "mamba": Architecture(
            "mamba",
            _mamba,
            _MAMBA,
            _STATE_TOP,
            (_RMS, "layer_norm_epsilon"),
            "backbone.layers",
            rotates=False,
        ),
        "mamba2": Architecture(
            "mamba2",
            _mamba2,
            _MAMBA2,
            _STATE_TOP,
            (_RMS, "layer_norm_epsilon"),
            "backbone.layers",
            rotates=False,
        ),
        "lfm2": Architecture(
            "lfm2",
            _lfm2,
            _LFM2,
            {
                "token_embd": Rule("model.embed_tokens"),
                "token_embd_norm": Rule("model.embedding_norm"),
                "output": Rule("lm_head"),
            },
            (_RMS, "norm_eps"),
        ),
        "falcon-h1": Architecture(
            "falcon_h1",
            _falcon_h1,
            _FALCON_H1,
            {
                "token_embd": Rule("model.embed_tokens"),
                "output_norm": Rule("model.final_layernorm"),
                "output": Rule("lm_head"),
            },
        ),
        "granitehybrid": Architecture("granitemoehybrid", _granite_hybrid, _GRANITE_HYBRID),
    }
)
"""By llama.cpp's name."""
