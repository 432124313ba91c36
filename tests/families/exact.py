"""The measure of `kvchat bench exact` on one tiny model: which models it is taken of, on which prompts, in which form."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from kvchat.bench.exact import ExactRow, compare
from kvchat.config import ModelConfig
from kvchat.models.gguf.importing import write_model
from kvchat.models.gguf.parts import read_gguf
from kvchat.models.kinds import as_generated
from kvchat.models.loaded import LoadedModel
from kvchat.models.loader import Origins, load_model
from kvchat.models.progress import silent
from tests.families.shrink import CONTEXT_KEYS, WINDOW_KEYS, random_tokens, tiny_random_model
from tests.families.zoo import VARIANTS
from tests.models.tiny_gguf import Type, tiny_hf_model, write_gguf

CONTEXT = 2048
WINDOW = 96
"""More than a page and what the control changes before it: the last token sees it in every layer."""
LENGTHS = (1100, 23, 65, 150)
"""Tokens of the prompts that are given from end to end: of several chunks, of less than a page, of one and a token more."""
TURNS = (3, 7)
"""Of the prompts that are chats."""
_WIDE = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 128, "num_attention_heads": 4}
_WIDE |= {"num_key_value_heads": 2, "head_dim": 32}
LEAN: Mapping[str, tuple[str, dict[str, Any]]] = {
    f"{family}, our own network": (family, _WIDE | options)
    for family, options in {
        "llama": {},
        "smollm3": {"no_rope_layers": [1, 0, 1], "use_sliding_window": False, "sliding_window": None},
        "mistral": {"sliding_window": None},
        "qwen2": {"use_sliding_window": False},
        "qwen3": {"use_sliding_window": False},
        "phi3": {"sliding_window": None},
    }.items()
}
"""Those whose matrices are all of sizes that the integer kernel takes."""
GGUFS = {f"llama, a GGUF of {kind.name}": kind for kind in (Type.Q4_0, Type.Q4_1, Type.Q5_1, Type.Q8_0)}


def loaded_model(family: str, folder: Path, dtype: str) -> LoadedModel:
    """A tiny model of a family, or of a variant of one, as it is loaded by default but for its dtype."""
    if family in GGUFS:
        return _of_gguf(family, folder, dtype)
    name, options = (LEAN | VARIANTS).get(family, (family, {}))
    model = tiny_random_model(name, **_sizes(name, options))
    model.save_pretrained(folder)
    return load_model(folder, ModelConfig(dtype=dtype, device="cpu"), name=family)


def exact_rows(model: LoadedModel, num_prompts: int) -> list[ExactRow]:
    """What the measure finds, on so many prompts."""
    all_of_them = list(_prompts(model))
    step = len(all_of_them) // num_prompts
    return list(compare(model, all_of_them[::step]))


def _prompts(model: LoadedModel) -> Iterator[list[int]]:
    for number, length in enumerate(LENGTHS):
        yield random_tokens(length, seed=number)
    draw = random.Random(5)
    for turns in TURNS:
        talk: list[int] = []
        for turn in range(turns):
            talk += random_tokens(draw.randint(3, 60), seed=100 * turns + turn)
            talk += as_generated(random_tokens(draw.randint(1, 12), seed=500 * turns + turn))
        yield model.told([*talk, *random_tokens(20, seed=turns)])


def _of_gguf(family: str, folder: Path, dtype: str) -> LoadedModel:
    gguf = folder / "tiny.gguf"
    model = tiny_hf_model(max_position_embeddings=CONTEXT)
    for parameter in model.parameters():
        if parameter.dim() >= 2:  # so that attention sees more than one token
            torch.nn.init.normal_(parameter, std=1.2 / parameter.shape[1] ** 0.5)
    write_gguf(gguf, model, tensor_type=GGUFS[family])
    write_model(read_gguf(gguf), folder, silent)
    return load_model(folder, ModelConfig(dtype=dtype, device="cpu"), name=family, origin=Origins(gguf))


def _sizes(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """With a context for prompts of several chunks, and windows that they pass."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(family).get_text_config(decoder=True)
    sizes = dict.fromkeys((*CONTEXT_KEYS, "max_target_positions"), CONTEXT) | dict.fromkeys(
        WINDOW_KEYS, WINDOW
    )
    stated = {key: options.get(key, getattr(config, key, None)) for key in sizes}
    return {
        **options,
        **{key: sizes[key] for key, value in stated.items() if type(value) is int and value > 0},
    }
