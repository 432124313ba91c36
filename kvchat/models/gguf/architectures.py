"""The table of llama.cpp's architectures in transformers' terms: which keys each reads, and where its tensors go.

A row is a family's name there, the sizes and switches of its config, and the rules of its tensors. What a row does not
ask for is refused by `Keys.check_all_read`, and a tensor without a rule is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kvchat.models.gguf import settings as said
from kvchat.models.gguf.keys import Keys
from kvchat.models.gguf.rules import (
    Rule,
    experts,
    latent_keys_and_values,
    minus_one,
    paired_rows,
    turned_experts,
    woven_experts,
)

Settings = said.Settings
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
        "llama-experts": Architecture("mixtral", said.mixture, {**DENSE, **_PAIRED, **expert_rules()}),
        "qwen2moe": Architecture(
            "qwen2_moe",
            said.qwen2_mixture,
            {
                **DENSE,
                **expert_rules(),
                **shared_rules("mlp.shared_expert"),
                "ffn_gate_inp_shexp": Rule("mlp.shared_expert_gate"),
            },
        ),
        "qwen3moe": Architecture("qwen3_moe", said.qwen_mixture, {**DENSE, **_HEAD_NORMS, **expert_rules()}),
        "gemma": Architecture(
            "gemma",
            said.gemma,
            {**DENSE, **_GEMMA_NORMS, "ffn_norm": Rule("post_attention_layernorm", minus_one)},
            _GEMMA_TOP,
        ),
        "gemma2": Architecture("gemma2", said.gemma2, _GEMMA2_BLOCK, _GEMMA_TOP),
        "gemma3": Architecture("gemma3_text", said.gemma3, {**_GEMMA2_BLOCK, **_GEMMA3_HEADS}, _GEMMA_TOP),
        "phi3": Architecture("phi3", said.phi3, {**DENSE, **_SWIGLU, "attn_qkv": Rule("self_attn.qkv_proj")}),
        "mistral3": Architecture("ministral3", said.mistral3, {**DENSE, **_PAIRED}),
        "gpt-oss": Architecture("gpt_oss", said.gpt_oss, {**DENSE, **_GPT_OSS_EXPERTS}),
        "olmo": Architecture("olmo", said.olmo, {**DENSE, **_PAIRED}, epsilon=(_NORM, "layer_norm_eps")),
        "olmo2": Architecture("olmo2", said.olmo2, _POST_NORMS),
        "granite": Architecture("granite", said.granite, {**DENSE, **_PAIRED}),
        "granitemoe": Architecture(
            "granitemoe",
            said.granite_mixture,
            {**DENSE, **_PAIRED, **expert_rules("block_sparse_moe", "router")},
        ),
        "smollm3": Architecture("smollm3", said.smollm3, {**DENSE, **_PAIRED}),
        "glm4": Architecture(
            "glm4",
            said.biases,
            {
                **DENSE,
                **_SWIGLU,
                "post_attention_norm": Rule("post_self_attn_layernorm"),
                "post_ffw_norm": Rule("post_mlp_layernorm"),
            },
        ),
        "command-r": Architecture("cohere", said.cohere, {**DENSE, **_HEAD_NORMS}, epsilon=_LAYER_NORM),
        "cohere2": Architecture("cohere2", said.cohere2, epsilon=_LAYER_NORM),
        "exaone4": Architecture("exaone4", said.exaone4, _POST_NORMS),
        "seed_oss": Architecture(
            "seed_oss", said.seed_oss, {**DENSE, "post_attention_norm": Rule("post_attention_layernorm")}
        ),
        "hunyuan-dense": Architecture(
            "hunyuan_v1_dense",
            said.hunyuan,
            {
                **DENSE,
                "attn_q_norm": Rule("self_attn.query_layernorm"),
                "attn_k_norm": Rule("self_attn.key_layernorm"),
            },
        ),
        "ernie4_5": Architecture("ernie4_5", said.ernie),
        "starcoder2": Architecture(
            "starcoder2",
            said.starcoder2,
            {**DENSE, "ffn_up": Rule("mlp.c_fc"), "ffn_down": Rule("mlp.c_proj")},
            epsilon=(_NORM, "norm_epsilon"),
        ),
        "stablelm": Architecture("stablelm", said.stablelm, epsilon=_LAYER_NORM),
        "nemotron": Architecture(
            "nemotron",
            said.nemotron,
            {**DENSE, **_PLUS_ONE_NORMS},
            {**TOP, "output_norm.weight": Rule("model.norm.weight", minus_one)},
            epsilon=(_NORM, "norm_eps"),
        ),
        "deepseek2": Architecture(
            "deepseek_v3",
            said.deepseek,
            {**DENSE, **_LATENT, **expert_rules(), **shared_rules("mlp.shared_experts")},
        ),
    }
)
"""By llama.cpp's name."""
