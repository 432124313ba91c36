from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvchat.cache.block import common_prefix
from kvchat.config import ModelConfig
from kvchat.errors import ModelUnavailableError
from kvchat.models.loader import load_model
from kvchat.models.reuse import ReusePolicy
from kvchat.models.stock.arena import Arena, Recomputed
from kvchat.models.stock.network import describe
from kvchat.models.stock.snapshots import Snapshots
from tests.families import shrink as families
from tests.families.shrink import tiny_random_model
from tests.families.sweep import plain_logits
from tests.tiny import VOCABULARY, tiny_folder, tiny_model


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
        ({"model_type": "whisper"}, "weights of tiny lack"),
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


def without(folder: Path, *names: str, **others: torch.Tensor) -> Path:
    """The folder with some tensors taken out of its weights, and others put in."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name not in names} | others
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba"])  # our own network, and transformers' modules
@pytest.mark.parametrize("which", [0, -1])
def test_a_checkpoint_that_lacks_tensors_is_refused_by_their_names(
    tmp_path: Path, family: str, which: int
) -> None:
    folder = tiny_folder(tmp_path / "model", family=family)
    names = sorted(name for name in load_file(folder / "model.safetensors") if ".layers." in name)
    with pytest.raises(ModelUnavailableError, match=rf"the weights of tiny lack \S*{names[which]}"):
        load_model(without(folder, names[which]), ModelConfig(name="tiny", dtype="float32"))
    with pytest.raises(ModelUnavailableError, match=rf"lack \S+ and {len(names) - 1} more"):
        load_model(without(folder, *names), ModelConfig(name="tiny", dtype="float32"))


def test_a_checkpoint_that_lacks_its_head_is_whole_only_where_it_is_tied(tmp_path: Path) -> None:
    tied = tiny_folder(tmp_path / "tied", family="gemma2", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    assert load_model(tied, ModelConfig(name="tiny")).vocab_size == VOCABULARY
    for family in ("llama", "gemma2"):
        folder = without(tiny_folder(tmp_path / family, family=family), "lm_head.weight")
        stated = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
        (folder / "config.json").write_text(json.dumps(stated))
        with pytest.raises(ModelUnavailableError, match=r"lack lm_head\.weight"):
            load_model(folder, ModelConfig(name="tiny"))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_tensor_of_another_shape_is_refused_by_its_name(tmp_path: Path, family: str) -> None:
    folder = tiny_folder(tmp_path / "model", family=family)
    without(folder, **{"model.norm.weight": torch.ones(47)})
    with pytest.raises(ModelUnavailableError, match=r"tensor model\.norm\.weight is \[47\]") as caught:
        load_model(folder, ModelConfig(name="tiny"))
    assert "calls for [48]" in str(caught.value)


def test_a_config_that_calls_for_far_more_than_there_is_takes_no_memory_for_it(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", family="gemma2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"intermediate_size": 60_000, "hidden_size": 60_000})
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelUnavailableError, match="the weights of tiny lack"):
        load_model(folder, ModelConfig(name="tiny"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_transformers_writes_nothing_on_the_terminal(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", family="gemma2")
    without(folder, extra=torch.ones(3))
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    config = json.loads((folder / "config.json").read_text()) | {"rope_parameters": {"rope_type": "odd"}}
    (folder / "config.json").write_text(json.dumps(config))
    code = (
        "import sys; from pathlib import Path; from kvchat.config import ModelConfig\n"
        "from kvchat.errors import KvchatError\n"
        "from kvchat.models.loader import load_model; from kvchat.models.text.tokenizer import load_tokenizer\n"
        "for load in (lambda p: load_model(p, ModelConfig()), load_tokenizer):\n"
        "    try: load(Path(sys.argv[1]))\n"
        "    except KvchatError: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


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
