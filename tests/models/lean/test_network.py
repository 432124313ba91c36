from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvchat.config import ModelConfig
from kvchat.errors import OutOfMemoryError
from kvchat.models.kinds import as_generated
from kvchat.models.lean.network import LeanNetwork
from kvchat.models.lean.shape import FAMILIES, lean_shape
from kvchat.models.lean.state import LeanState
from kvchat.models.loaded import LoadedModel
from kvchat.models.loader import Origins, load_model
from kvchat.models.stock.network import StockNetwork
from kvchat.models.weights.choice import why_no_integers
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.packed import PackedHome
from kvchat.models.weights.projection import MAX_ROWS
from tests.tiny import random_tokens, tiny_model, transformers_model

needs_kernel = pytest.mark.skipif(
    bool(why_no_integers(torch.device("cpu"), torch.bfloat16)), reason="no fast integer kernel"
)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, with biases": {"attention_bias": True, "mlp_bias": True},
    "llama, scaled positions": {"rope_parameters": LLAMA3},
    "smollm3": {"no_rope_layers": [1, 0, 1], "pad_token_id": 0},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "phi3": {"pad_token_id": 0},
}
WIDE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "head_dim": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
"""Sizes that the integer kernel takes."""


def folder_of(kind: str, folder: Path, **more: Any) -> Path:
    family, overrides = kind.partition(",")[0], KINDS[kind] | more
    tiny_model(family, **overrides).model.save_pretrained(folder)
    return folder


def loaded_from(folder: Path, dtype: str = "float32", **settings: Any) -> LoadedModel:
    return load_model(
        folder, ModelConfig(dtype=dtype, **settings), name="tiny", origin=Origins(root=folder.parent)
    )


def stock(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Logits of all positions, [tokens, vocab], as transformers alone computes them."""
    with torch.inference_mode():
        return transformers_model(folder)(input_ids=torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers_however_the_tokens_are_split(kind: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path / "model")
    loaded, tokens = loaded_from(folder), random_tokens(150)
    assert isinstance(loaded.network, LeanNetwork)
    expected = stock(folder, tokens)
    for sizes in ([150], [100, 1, 1, 48], [1] * 20 + [130]):
        state, found = loaded.new_state(), []
        for size in sizes:
            start = len(state.tokens)
            found.append(loaded.logits(tokens[start : start + size], state, size))
        assert (torch.cat(found) - expected).abs().max() < 1e-4
    altered = [*tokens[:3], tokens[3] + 1, *tokens[4:]]
    assert (loaded.forward(altered, loaded.new_state()) - expected[-1]).abs().max() > 1e-2


def test_what_lies_behind_the_held_tokens_does_not_matter(tmp_path: Path) -> None:
    loaded, tokens = loaded_from(folder_of("qwen2", tmp_path / "model")), random_tokens(90)
    state = loaded.new_state()
    loaded.forward(tokens, state)
    assert state.keep(40) == 40
    again = loaded.forward(tokens[40:60], state)
    assert torch.allclose(again, loaded.forward(tokens[:60], loaded.new_state()), atol=1e-4)
    state.shrink()
    fresh = loaded.forward(tokens[60:61], state)
    assert torch.allclose(fresh, loaded.forward(tokens[:61], loaded.new_state()), atol=1e-4)


def test_a_prompt_may_end_where_the_context_does(tmp_path: Path) -> None:
    folder = folder_of("qwen2", tmp_path / "model")
    loaded, roomy = loaded_from(folder, context=50), loaded_from(folder)
    tokens = random_tokens(50)
    for size in (50, 49, 43):
        state = loaded.new_state()
        found = loaded.forward(tokens[:size], state)
        expected = roomy.forward(tokens[:size], roomy.new_state())
        assert torch.allclose(found, expected, atol=1e-4)
        assert state.tokens == tokens[:size]


def test_what_is_read_behind_the_held_tokens_is_a_number(tmp_path: Path) -> None:
    state = loaded_from(folder_of("qwen2", tmp_path / "model")).new_state()
    assert isinstance(state, LeanState)
    for plane in state.planes:
        plane.fill_(torch.nan)
    for written, keys, values in state.views(3, 5, 64):
        written.fill_(7)
        assert all(
            states[0, :, 3:5].eq(7).all() and states[0, :, 5:].eq(0).all() for states in (keys, values)
        )
    for written, keys, _ in state.views(3, 4, 64):
        written.fill_(8)
        assert keys[0, 0, 3:6, 0].tolist() == [8, 7, 0]
    assert all(plane[:, 64:].isnan().all() for plane in state.planes)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("mistral", {"sliding_window": 64}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}),
        ("phi3", {"partial_rotary_factor": 0.5, "pad_token_id": 0}),
        ("gemma2", {}),
        ("olmo2", {}),
    ],
)
def test_what_is_not_surely_known_is_left_to_transformers(
    family: str, change: dict[str, Any], tmp_path: Path
) -> None:
    tiny_model(family, **change).model.save_pretrained(tmp_path / "model")
    assert isinstance(loaded_from(tmp_path / "model").network, StockNetwork)


def test_a_tensor_that_nobody_expects_is_left_to_transformers(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.0.extra.weight": torch.zeros(3)}, folder / "model.safetensors")
    assert isinstance(loaded_from(folder).network, StockNetwork)


@pytest.mark.parametrize("missing", ["rope_parameters", "num_key_value_heads", "rms_norm_eps"])
def test_a_config_that_leaves_a_doubt_has_no_shape(missing: str, tmp_path: Path) -> None:
    config = json.loads((folder_of("llama", tmp_path / "model") / "config.json").read_text())
    assert lean_shape(config) is not None
    assert lean_shape({key: value for key, value in config.items() if key != missing}) is None
    assert set(FAMILIES) == {kind.partition(",")[0] for kind in KINDS}


def test_the_older_spelling_of_a_config_means_the_same(tmp_path: Path) -> None:
    config = json.loads((folder_of("llama", tmp_path / "model") / "config.json").read_text())
    newer = lean_shape(config)
    older = {key: value for key, value in config.items() if key != "rope_parameters"}
    older |= {"rope_theta": config["rope_parameters"]["rope_theta"], "rope_scaling": None}
    assert newer is not None
    found = lean_shape(older)
    assert found is not None
    assert torch.equal(found.inverse_frequencies(), newer.inverse_frequencies())


@needs_kernel
@pytest.mark.parametrize(("mode", "bound"), [("int8", 0.1), ("int4", 0.8)])
@pytest.mark.parametrize("kind", ["llama", "llama, tied", "qwen3", "phi3"])
def test_integers_stay_near_the_weights_in_decode_and_in_prefill(
    kind: str, mode: str, bound: float, tmp_path: Path
) -> None:
    folder = folder_of(kind, tmp_path / "model", **WIDE)
    loaded, tokens = loaded_from(folder, "bfloat16", weights=mode), random_tokens(60)
    assert loaded.weights.mode.value == mode
    expected = stock(folder, tokens)[-1]
    together = loaded.forward(tokens, loaded.new_state())
    state = loaded.new_state()
    for token in tokens:
        alone = loaded.forward([token], state)
    for found in (together, alone):
        assert (found - expected).norm() / expected.norm() < bound
    assert (together - alone).norm() / expected.norm() < 0.05


@needs_kernel
@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("held", [0, 5, 300])
def test_a_few_tokens_at_once_have_to_the_bit_the_logits_of_one_after_the_other(
    mode: str, held: int, tmp_path: Path
) -> None:
    folder = folder_of("llama", tmp_path / "model", **WIDE, vocab_size=320)
    loaded, tokens = loaded_from(folder, "bfloat16", weights=mode), random_tokens(held + MAX_ROWS)
    state = loaded.new_state()
    if held:
        loaded.forward(tokens[:held], state)
    alone = torch.stack([loaded.forward([token], state) for token in tokens[held:]])
    for count in (2, 5, MAX_ROWS):
        state.keep(held)
        assert torch.equal(loaded.logits(tokens[held : held + count], state, count), alone[:count])


@needs_kernel
def test_a_matrix_that_the_kernel_does_not_take_leaves_the_others_their_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, kernel = [], torch._weight_int4pack_mm_for_cpu

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return kernel(*arguments)

    monkeypatch.setattr(torch, "_weight_int4pack_mm_for_cpu", counted)
    folder = folder_of("llama", tmp_path / "model", **WIDE, vocab_size=333)
    loaded, tokens = loaded_from(folder, "bfloat16", weights="int8"), random_tokens(30)
    state = loaded.new_state()
    loaded.forward(tokens[:29], state)
    assert not calls
    found = loaded.forward(as_generated(tokens[29:]), state)
    layers = transformers_model(folder).config.num_hidden_layers
    assert len(calls) == 2 * 4 * layers
    expected = stock(folder, tokens)[-1]
    assert (found - expected).norm() / expected.norm() < 0.1


@needs_kernel
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_without_a_word_a_checkpoint_decodes_from_8_bits(tmp_path: Path, dtype: str) -> None:
    folder = folder_of("llama", tmp_path / "model", **WIDE)
    coarse, plain = loaded_from(folder, dtype), loaded_from(folder, dtype, weights="native")
    assert (coarse.weights.mode, plain.weights.mode) == (WeightsMode.INT8, WeightsMode.NATIVE)
    assert coarse.weights.why and plain.weights.why == "asked for"
    assert coarse.network.token_bytes < 0.7 * plain.network.token_bytes
    assert (
        coarse.network.num_parameters
        == plain.network.num_parameters
        == transformers_model(folder).num_parameters()
    )


@needs_kernel
@pytest.mark.parametrize("kind", ["llama", "llama, tied", "qwen3"])
def test_given_tokens_beside_integers_in_float32_have_the_logits_of_the_values_that_these_stand_for(
    kind: str, tmp_path: Path
) -> None:
    folder, tokens = folder_of(kind, tmp_path / "model", **WIDE), random_tokens(70)
    loaded = loaded_from(folder, weights="int8")
    weights = load_file(folder / "model.safetensors")
    for projection, name in (("qkv", "q_proj"), ("down", "down_proj")):
        matrix = getattr(loaded.network.weights.layers[1], projection).matrices[0]
        stored = next(
            value
            for key, value in weights.items()
            if f"layers.1.{'self_attn' if name == 'q_proj' else 'mlp'}.{name}" in key
        )
        assert torch.allclose(matrix.take(torch.arange(len(stored))), stored, atol=0.02)
    together = loaded.forward(tokens, loaded.new_state())
    expected = stock(folder, tokens)[-1]
    assert 1e-4 < (together - expected).norm() / expected.norm() < 0.05
    state = loaded.new_state()
    for token in as_generated(tokens):
        alone = loaded.forward([token], state)
    assert (together - alone).norm() / expected.norm() < 0.05


@needs_kernel
def test_what_integers_stand_for_is_kept_where_there_is_memory_and_changes_no_bit(tmp_path: Path) -> None:
    folder, tokens = folder_of("llama", tmp_path / "model", **WIDE), random_tokens(40)
    settings = ModelConfig(dtype="float32", context=64)
    roomy = load_model(folder, settings, name="tiny", free_bytes=lambda _: 10**9)
    tight = load_model(folder, settings, name="tiny", free_bytes=lambda _: 10**6)
    found = [loaded.forward(tokens, loaded.new_state()) for loaded in (roomy, tight)]
    assert torch.equal(*found)
    assert roomy.weights.mode is tight.weights.mode is WeightsMode.INT8
    assert roomy.weights.regime == tight.weights.regime
    assert "kept as float32" in roomy.weights.why and "no second copy" in tight.weights.why
    assert tight.num_bytes < 0.5 * roomy.num_bytes


@needs_kernel
def test_the_context_is_the_largest_that_fits_beside_the_weights(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model", **WIDE, max_position_embeddings=1 << 20)
    settings = ModelConfig(dtype="float32")
    context = load_model(folder, settings, name="tiny", free_bytes=lambda _: 10**7).context
    kv_per_token = 2 * 3 * 4 * 16 * 4
    assert 10**7 - 10**6 - 1024 * kv_per_token < context * kv_per_token < 10**7
    assert context % 1024 == 0
    with pytest.raises(OutOfMemoryError, match=r"take --context \d+ or less"):
        load_model(
            folder, ModelConfig(dtype="float32", context=1 << 20), name="tiny", free_bytes=lambda _: 10**7
        )


@needs_kernel
def test_integers_are_made_once_and_mapped_ever_after(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model", **WIDE)
    tokens = random_tokens(9)
    first = loaded_from(folder, "bfloat16").forward(tokens, loaded_from(folder, "bfloat16").new_state())
    (packed,) = (tmp_path / "packed").glob("*.safetensors")
    written = packed.stat().st_mtime_ns
    again = loaded_from(folder, "bfloat16")
    assert torch.equal(first, again.forward(tokens, again.new_state()))
    assert packed.stat().st_mtime_ns == written
    packed.write_bytes(packed.read_bytes()[:-100])
    mended = loaded_from(folder, "bfloat16")
    assert torch.equal(first, mended.forward(tokens, mended.new_state()))
    assert packed.stat().st_mtime_ns != written


@needs_kernel
def test_other_weights_in_the_same_folder_get_other_integers(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model", **WIDE)
    loaded_from(folder, "bfloat16")
    (before,) = (tmp_path / "packed").glob("*.safetensors")
    tiny_model("llama", seed=5, **WIDE).model.save_pretrained(folder)
    changed = loaded_from(folder, "bfloat16")
    (after,) = (tmp_path / "packed").glob("*.safetensors")
    assert before != after
    tokens = random_tokens(20)
    expected = stock(folder, tokens)[-1]
    assert (changed.forward(tokens, changed.new_state()) - expected).norm() / expected.norm() < 0.1
    PackedHome.of(tmp_path, folder).clear()
    assert not list((tmp_path / "packed").iterdir())


def test_models_that_compute_at_once_in_two_threads_get_what_each_gets_alone(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)
    models = [loaded_from(folder) for _ in range(2)]
    prompts = [random_tokens(300, seed=seed) for seed in range(2)]

    def computed(model: LoadedModel, tokens: list[int]) -> torch.Tensor:
        return model.logits(tokens, model.new_state(), 1)

    alone = [computed(model, tokens) for model, tokens in zip(models, prompts, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(40):
            both = list(pool.map(computed, models, prompts))
            assert all(torch.equal(one, other) for one, other in zip(alone, both, strict=True))
