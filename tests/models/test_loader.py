from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvchat.config import ModelConfig
from kvchat.errors import ModelUnavailableError
from kvchat.models.arena import Arena, Recomputed
from kvchat.models.kv_state import common_prefix
from kvchat.models.loader import load_model
from kvchat.models.reuse import ReusePolicy
from kvchat.models.snapshots import Snapshots
from kvchat.models.stock import describe
from tests.families import shrink as families
from tests.families.shrink import tiny_random_model
from tests.families.sweep import plain_logits
from tests.tiny import tiny_folder, tiny_model


def test_a_folder_becomes_a_model_in_the_dtype_that_was_asked_for(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    for dtype in ("float32", "bfloat16"):
        loaded = load_model(folder, ModelConfig(name="tiny", dtype=dtype))
        assert loaded.dtype == getattr(torch, dtype)
        assert loaded.context == 512
        assert loaded.eos_ids == {1}
        assert loaded.rule.policy is ReusePolicy.BLOCKS


def test_the_context_can_be_made_smaller_and_never_larger_than_the_models_own(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    assert load_model(folder, ModelConfig(context=100)).context == 100
    assert load_model(folder, ModelConfig(context=10_000)).context == 512


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"model_type": "no_such_family"}, "unknown architecture"),
        ({"model_type": "clip"}, "no text generator"),
        ({"hidden_size": 7777}, "config.json can't be used: The hidden size"),
        ({"hidden_size": 96}, "contradicts itself: its tensor lm_head.weight is"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, damage: dict[str, object], said: str) -> None:
    folder = tiny_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | damage
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailableError, match=said) as caught:
        load_model(folder, ModelConfig(name="tiny"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "overrides", "kind"),
    [
        ("llama", {}, Arena),
        ("gemma2", {"sliding_window": 16}, Arena),
        ("mamba", {"state_size": 8}, Snapshots),
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, Snapshots),
        ("recurrent_gemma", {}, Recomputed),
    ],
)
def test_the_policy_is_that_of_the_layers(family: str, overrides: dict[str, object], kind: type) -> None:
    assert isinstance(tiny_model(family, **overrides).new_state(), kind)


@pytest.mark.parametrize(
    ("left", "right", "length"),
    [([], [], 0), ([1], [2], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 9, 3], 1)],
)
def test_the_common_prefix_is_found(left: list[int], right: list[int], length: int) -> None:
    assert common_prefix(left, right) == common_prefix(right, left) == length


def test_the_common_prefix_of_long_lists_is_exact_at_every_position() -> None:
    left = list(range(500))
    for position in range(0, 500, 7):
        assert common_prefix(left, [*left[:position], -1, *left[position + 1 :]]) == position


def test_a_model_that_reads_both_ways_is_refused_and_as_a_decoder_it_counts_its_positions_itself() -> None:
    with pytest.raises(ModelUnavailableError, match="from left to right"):
        describe(tiny_random_model("roberta", is_decoder=False), name="roberta")
    loaded = describe(tiny_random_model("roberta"), name="roberta")
    tokens, state = families.random_tokens(20), loaded.new_state()
    loaded.forward(tokens[:11], state)
    expected = plain_logits(loaded.model)(tokens)[-1]
    assert (loaded.forward(tokens[11:], state) - expected).abs().max() < 1e-4


def test_as_many_threads_compute_as_were_asked_for(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    before = torch.get_num_threads()
    try:
        load_model(folder, ModelConfig(threads=before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
