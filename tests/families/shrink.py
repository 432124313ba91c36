"""Tiny versions of the models that transformers can build: every size in a default config shrunk, nothing else changed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

VOCABULARY = 96
WINDOW = 12
"""Tokens that a sliding or chunked layer sees: few, so that conversations pass them."""
CONTEXT = 256
CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "n_ctx",
    "model_max_length",
    "context_length",
)
WINDOW_KEYS = (
    "sliding_window", "sliding_window_size", "attention_chunk_size", "window_size", "attention_window_size",
    "local_attention", "local_attention_window_len", "floor_scale",
)  # fmt: skip

_SIZES = {
    64: "hidden_size d_model n_embd emb_dim embedding_dim embedding_size word_embed_proj_dim lru_width mamba_d_ssm"
    " attention_hidden_size input_embedding_size output_embedding_size pronunciation_embed_dim shape_embed_dim"
    " linear_intermediate_size hidden_size_global",
    96: "intermediate_size ffn_dim d_inner n_inner dff dim_ff ffn_hidden_size moe_intermediate_size decoder_ffn_dim"
    " encoder_ffn_dim shared_expert_intermediate_size shared_intermediate_size intermediate_size_mlp"
    " expert_ffn_hidden_size feed_forward_size dense_intermediate_size shared_experts_intermediate_size"
    " moe_shared_expert_intermediate_size vocab_size vocab_size_per_layer_input pronunciation_vocab_size"
    " shape_vocab_size unpadded_vocab_size encoder_hash_byte_group_vocab",
    4: "num_attention_heads n_head n_heads attention_heads num_heads decoder_attention_heads encoder_attention_heads"
    " num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_value_heads"
    " num_experts n_routed_experts num_local_experts moe_num_experts time_step_rank mamba_dt_rank"
    " index_topk_blocks linear_num_heads",
    2: "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k n_groups mamba_ngroups",
    16: "head_dim linear_key_head_dim linear_value_head_dim linear_head_dim v_head_dim qk_nope_head_dim index_head_dim"
    " swa_head_dim kv_channels d_head dim_head attention_head_size qk_rope_head_dim d_rel rotary_dim",
    32: "index_n_heads kv_lora_rank q_lora_rank hidden_size_per_layer_input qk_head_dim index_topk o_lora_rank"
    " router_hidden_size laurel_rank hc_lowrank adapter_rank",
    8: "mamba_d_state ssm_state_size state_size chunk_size mamba_chunk_size index_block_size",
    1: "n_group topk_group num_expert_group",
    WINDOW: " ".join(WINDOW_KEYS),
    CONTEXT: " ".join(CONTEXT_KEYS),
}
_SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
_DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
)
_MIN_LAYERS = 3
_KV_HEADS = {"num_key_value_heads": "num_attention_heads", "num_kv_heads": "num_attention_heads"} | {
    "num_query_groups": "num_attention_heads", "swa_num_key_value_heads": "swa_num_attention_heads"
}  # fmt: skip
_GAIN = 1.2
"""Of the random matrices: above 1 a token's influence grows from layer to layer, and so does rounding."""
_TIME_STEPS = ("dt_bias", "dt_proj.bias")
_SPECIAL_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16}
_UNCLAMPED = {
    "time_step_min": 1e-9
}  # below it transformers' chunks clamp a time step that its single steps don't
_SHARED_KV = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
}
ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Families that read both ways unless their config says otherwise, which it does here."""
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots3_note": {"head_dim": 32},
    "dots3_note_text": {"head_dim": 32},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 1},
    "gemma3n_text": _SHARED_KV | {"intermediate_size": [96] * 4, "activation_sparsity_pattern": [0.5] * 4},
    "gemma4": _SHARED_KV | {"global_head_dim": 32, "per_layer_config": {1: {"head_dim": 32}, 3: {"head_dim": 32}}},
    "gemma4_text": _SHARED_KV | {"per_layer_config": {1: {"head_dim": 32}, 3: {"head_dim": 32}}},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention", "mamba"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse", "full_attention"]},
    "ministral": {"head_dim": 16, "sliding_window": WINDOW},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16} | _UNCLAMPED,
    "qwen4_exp": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
                  "indexer_compress_ratio": 4},
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [32, 32]},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"chunk_size": 64, "hidden_size": 128, "embedding_dim": 128},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "attention_head_dim": 32, "attention_hidden_size": 128},
    "zamba2": {"attention_head_dim": 32, "attention_hidden_size": 128, "n_mamba_heads": 8, "mamba_headdim": 16}
    | _UNCLAMPED,
}  # fmt: skip
"""What a default config can't tell a smaller model: sizes that must agree, and kinds of layers that only options bring."""
OVERRIDES |= {family: {"is_decoder": True} | OVERRIDES.get(family, {}) for family in ENCODERS}
OVERRIDES["qwen4_exp_text"] = OVERRIDES["qwen4_exp"]
OVERRIDES["gemma4_unified_text"] = OVERRIDES["gemma4_unified"] = OVERRIDES["gemma4_text"]


def shrunk_config(family: str, **overrides: Any) -> PreTrainedConfig:
    """The default config of `family` with every size shrunk; `overrides` go where its text model reads them."""
    default = AutoConfig.for_model(family)
    values = _shrunk(default)
    overrides = OVERRIDES.get(family, {}) | overrides
    text = next((key for key in ("text_config", "decoder", "decoder_config") if key in values), None)
    if text is None:
        values |= overrides
    else:
        values[text] |= overrides
    return type(default)(**values)


def tiny_random_model(family: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A float32 model of `family` with random weights so large that its logits depend on every token."""
    torch.manual_seed(seed)
    config = shrunk_config(family, **overrides)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = model.eval()
    for name, parameter in model.named_parameters():
        if name.endswith(_TIME_STEPS):
            torch.nn.init.constant_(parameter, -4)  # a state that remembers tens of tokens, not two
        elif parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=_GAIN / max(min(parameter.shape[-2:]), 9) ** 0.5)
        elif not name.endswith("weight"):  # those are of norms
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def random_tokens(length: int, *, seed: int = 0) -> list[int]:
    """Token ids that are no special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


def _shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    """What to pass to the config's class: only what differs from its defaults."""
    given = config.to_dict()
    values: dict[str, Any] = {}
    for key in given:
        inner = vars(config).get(key)
        if isinstance(inner, PreTrainedConfig):
            values[key] = {"model_type": inner.model_type} | _shrunk(inner)
        elif key in _SPECIAL_IDS:
            values[key] = _SPECIAL_IDS[key]
    return values | _narrower(given) | _shallower(given)


def _narrower(given: dict[str, Any]) -> dict[str, Any]:
    sizes = {key: value for key, value in given.items() if type(value) is int and value > 0}
    kv_heads = {
        key: 4 if sizes[key] == sizes.get(all_of) else 2 for key, all_of in _KV_HEADS.items() if key in sizes
    }
    return {key: min(value, _SMALL[key]) for key, value in sizes.items() if key in _SMALL} | kv_heads


def _shallower(given: dict[str, Any]) -> dict[str, Any]:
    """Few layers, but one of each kind that the default has; lists with an entry a layer are cut alike."""
    depth_keys = [key for key in _DEPTHS if isinstance(given.get(key), int)]
    if not depth_keys:
        return {}
    depth = given[depth_keys[0]]
    lists = {key: value for key, value in given.items() if isinstance(value, list) and len(value) == depth}
    numbered = {
        key for key, value in lists.items() if value == list(range(depth))
    }  # layers that are all of a kind
    own = {int(index): values for index, values in (given.get("per_layer_config") or {}).items()}
    kinds = [
        (str(own.get(i)), *(str(value[i]) for key, value in lists.items() if key not in numbered))
        for i in range(depth)
    ]
    first = {kinds.index(kind) for kind in kinds}
    others = [index for index in range(depth) if index not in first]
    chosen = sorted(first | set(others[: max(0, _MIN_LAYERS - len(first))]))
    cut: dict[str, Any] = {key: [value[index] for index in chosen] for key, value in lists.items()}
    cut |= {key: list(range(len(chosen))) for key in numbered}
    if own:
        cut["per_layer_config"] = {new: _narrower(own[old]) for new, old in enumerate(chosen) if old in own}
    return {key: len(chosen) for key in depth_keys} | cut
