"""The families that are swept in every run of the tests, and what is declared for each."""

from __future__ import annotations

from typing import Any

from kvchat.models.reuse import BLOCKS, SNAPSHOTS, STEPS, ReuseRule
from tests.families.shrink import WINDOW

ZOO: dict[str, ReuseRule] = {
    "llama": BLOCKS,
    "smollm3": BLOCKS,
    "qwen2": BLOCKS,
    "qwen3": BLOCKS,
    "qwen3_moe": BLOCKS,
    "mistral": BLOCKS,
    "phi3": BLOCKS,
    "gemma2": BLOCKS,
    "gemma3": BLOCKS,
    "gemma3_text": BLOCKS,
    "gemma4": BLOCKS,
    "gpt2": BLOCKS,
    "gpt_neox": BLOCKS,
    "gpt_oss": BLOCKS,
    "olmo2": BLOCKS,
    "olmo3": BLOCKS,
    "cohere2": BLOCKS,
    "llama4": BLOCKS,
    "deepseek_v3": BLOCKS,
    "deepseek_v32": BLOCKS,
    "mamba": STEPS,
    "mamba2": SNAPSHOTS,
    "falcon_h1": SNAPSHOTS,
    "jamba": STEPS,
    "qwen3_next": SNAPSHOTS,
    "lfm2": SNAPSHOTS,
    "nemotron_h": SNAPSHOTS,
    "granitemoehybrid": SNAPSHOTS,
    "bamba": SNAPSHOTS,
}

_WINDOWS = {
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "num_hidden_layers": 4,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v3, sparse layers": ("deepseek_v3", {"first_k_dense_replace": 1, "num_experts_per_tok": 2}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma4_text, experts": (
        "gemma4_text",
        {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 96},
    ),
    "gpt2, scaled by layer": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ),
    "gpt_bigcode, many queries": ("gpt_bigcode", {"multi_query": False}),
    "granite, multipliers": ("granite", {"logits_scaling": 2.0, "attention_multiplier": 0.1}),
    "llama, dynamic rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama, yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "phi3, window": ("phi3", {"sliding_window": WINDOW}),
    "qwen2, window": (
        "qwen2",
        _WINDOWS,
    ),
    "qwen3, window": (
        "qwen3",
        _WINDOWS,
    ),
}
"""What options make of a family, by the name in the table."""
