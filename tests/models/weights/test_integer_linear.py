from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kvchat.config import ModelConfig
from kvchat.models.loaded import LoadedModel
from kvchat.models.loader import Origins, load_model
from kvchat.models.stock.network import StockNetwork
from kvchat.models.weights.choice import why_no_integers
from kvchat.models.weights.integer_linear import IntegerLinear
from kvchat.models.weights.mode import WeightsMode
from tests.tiny import random_tokens, tiny_model, transformers_model

pytestmark = pytest.mark.skipif(
    bool(why_no_integers(torch.device("cpu"), torch.bfloat16)), reason="no fast integer kernel"
)
WIDE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "head_dim": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 16},
    "olmo2": {},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
}


def folder_of(family: str, folder: Path) -> Path:
    tiny_model(family, **(WIDE | FAMILIES[family])).model.save_pretrained(folder)
    return folder


def loaded_from(folder: Path, weights: str = "auto") -> LoadedModel:
    settings = ModelConfig(dtype="bfloat16", weights=weights)
    return load_model(folder, settings, name="tiny", origin=Origins(root=folder.parent))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_from_8_bits_near_its_weights(family: str, tmp_path: Path) -> None:
    folder, tokens = folder_of(family, tmp_path / "model"), random_tokens(60)
    loaded = loaded_from(folder)
    assert loaded.weights.mode is WeightsMode.INT8
    with torch.inference_mode():
        expected = transformers_model(folder)(input_ids=torch.tensor([tokens])).logits[0, -1]
    together = loaded.forward(tokens, loaded.new_state())
    state = loaded.new_state()
    for token in tokens:
        alone = loaded.forward([token], state)
    for found in (together, alone):
        assert (found - expected).norm() / expected.norm() < 0.1
    assert any(isinstance(module, IntegerLinear) for module in loaded.model.modules())


def test_the_integers_are_kept_for_the_next_time(tmp_path: Path) -> None:
    folder, tokens = folder_of("olmo2", tmp_path / "model"), random_tokens(9)
    first = loaded_from(folder)
    (kept,) = (tmp_path / "packed").glob("*.safetensors")
    written = kept.stat().st_mtime_ns
    again = loaded_from(folder)
    assert kept.stat().st_mtime_ns == written
    expected = first.forward(tokens, first.new_state())
    assert torch.equal(again.forward(tokens, again.new_state()), expected)


def test_what_decoding_reads_is_less_and_what_is_held_is_more(tmp_path: Path) -> None:
    folder = folder_of("gemma2", tmp_path / "model")
    coarse, plain = loaded_from(folder), loaded_from(folder, "native")
    assert isinstance(plain.network, StockNetwork)
    assert coarse.network.token_bytes < 0.75 * plain.network.token_bytes
    assert plain.num_bytes < coarse.num_bytes < 1.7 * plain.num_bytes


def test_a_tied_head_and_its_embedding_stay_one(tmp_path: Path) -> None:
    model = loaded_from(folder_of("gemma2", tmp_path / "model")).model
    assert isinstance(model.lm_head, IntegerLinear)
    assert model.lm_head.weight is model.model.embed_tokens.weight
