"""The families that are swept in every run of the tests, and what is declared for each."""

from __future__ import annotations

from kvchat.models.reuse import BLOCKS, SNAPSHOTS, STEPS, ReuseRule

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
