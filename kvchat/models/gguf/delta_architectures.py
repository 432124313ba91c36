"""Rows of the table for Qwen 3.5, most of whose layers carry a state by the gated delta rule: see `architectures`.

Each key head serves several value heads there; transformers has these side by side, llama.cpp the first of each key head,
then the second of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from kvchat.models.gguf.architectures import DENSE, TOP, Architecture, Settings, expert_rules, shared_rules
from kvchat.models.gguf.keys import Keys
from kvchat.models.gguf.rules import Config, Make, Rule, minus_one


def _delta(keys: Keys, config: Settings) -> Settings:
    """Sizes of the states, and which layers have them."""
    num_layers = config["num_hidden_layers"]
    every = keys.whole("full_attention_interval", 4)
    carries = keys.value("attention.recurrent_layers") or [(n + 1) % every != 0 for n in range(num_layers)]
    value_heads = keys.whole("ssm.time_step_rank")
    keys.value("rope.dimension_sections")  # of pictures: all three positions of a text's token are the same
    return {
        "layer_types": [
            "linear_attention" if is_state else "full_attention" for is_state in carries[:num_layers]
        ],
        "linear_conv_kernel_dim": keys.whole("ssm.conv_kernel"),
        "linear_key_head_dim": keys.whole("ssm.state_size"),
        "linear_num_key_heads": keys.whole("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": keys.whole("ssm.inner_size") // max(1, value_heads),
    }


def _delta_mixture(keys: Keys, config: Settings) -> Settings:
    """The same with experts, and one that every token goes through."""
    return _delta(keys, config) | {
        "num_experts": keys.whole("expert_count"),
        "num_experts_per_tok": keys.whole("expert_used_count"),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length"),
        "shared_expert_intermediate_size": keys.whole("expert_shared_feed_forward_length"),
    }


def _by_key_head(part: torch.Tensor, config: Config) -> torch.Tensor:
    """Rows of value heads, [value heads * any, ...], in transformers' order."""
    heads, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    rows = part.reshape(values // heads, heads, -1, *part.shape[1:])
    return rows.transpose(0, 1).reshape(part.shape)


def _value_rows(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    (part,) = parts
    return _by_key_head(part, config)


def _value_columns(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    (part,) = parts
    return _by_key_head(part.t(), config).t().contiguous()


def _last_rows(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """Rows of queries and keys as they are, and behind them those of values."""
    (part,) = parts
    first = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]
    return torch.cat([part[:first], _by_key_head(part[first:], config)])


def _convolution(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    return _last_rows(parts, config).unsqueeze(1)


def _decay(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    (part,) = parts
    return _by_key_head(torch.log(-part.float()), config)


def _state(module: str, make: Make) -> Rule:
    return Rule(f"linear_attn.{module}", make)


_ATTENTION = {
    **DENSE,
    "attn_norm": Rule("input_layernorm", minus_one),
    "post_attention_norm": Rule("post_attention_layernorm", minus_one),
    "attn_q_norm": Rule("self_attn.q_norm", minus_one),
    "attn_k_norm": Rule("self_attn.k_norm", minus_one),
    "attn_qkv": _state("in_proj_qkv", _last_rows),
    "attn_gate": _state("in_proj_z", _value_rows),
    "ssm_alpha": _state("in_proj_a", _value_rows),
    "ssm_beta": _state("in_proj_b", _value_rows),
    "ssm_conv1d.weight": _state("conv1d.weight", _convolution),
    "ssm_dt.bias": _state("dt_bias", _value_rows),
    "ssm_a": _state("A_log", _decay),
    "ssm_norm": Rule("linear_attn.norm"),
    "ssm_out": _state("out_proj", _value_columns),
}
_EXPERTS = {
    **expert_rules(),
    **shared_rules("mlp.shared_expert"),
    "ffn_gate_inp_shexp": Rule("mlp.shared_expert_gate"),
}
_TOP = {**TOP, "output_norm": Rule("model.norm", minus_one)}

DELTA: Mapping[str, Architecture] = MappingProxyType(
    {
        "qwen35": Architecture("qwen3_5_text", _delta, _ATTENTION, _TOP),
        "qwen35moe": Architecture("qwen3_5_moe_text", _delta_mixture, {**_ATTENTION, **_EXPERTS}, _TOP),
    }
)
"""By llama.cpp's name."""
