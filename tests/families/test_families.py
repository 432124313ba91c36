from __future__ import annotations

from pathlib import Path

import pytest

from kvchat.config import ModelConfig
from kvchat.models.lean.network import LeanNetwork
from kvchat.models.loaded import LoadedModel
from kvchat.models.loader import load_model
from kvchat.models.reuse import BLOCKS, SNAPSHOTS, Continuation, ReusePolicy
from kvchat.models.stock import attention, experts
from kvchat.models.stock.network import describe
from tests.families.shrink import WINDOW, random_tokens, tiny_random_model
from tests.families.sweep import MESSAGE, TOLERANCE, Journey, plain_logits
from tests.families.zoo import ZOO


def loaded_model(family: str, device: str) -> LoadedModel:
    model = tiny_random_model(family).to(device)
    attention.enable(model)
    experts.enable(model)
    return describe(model, name=family)


def journey(loaded: LoadedModel, folder: Path) -> Journey:
    return Journey(loaded, plain_logits(loaded.model), folder)


@pytest.fixture(scope="module", params=ZOO)
def travelled(
    request: pytest.FixtureRequest, device: str, tmp_path_factory: pytest.TempPathFactory
) -> Journey:
    way = journey(loaded_model(request.param, device), tmp_path_factory.mktemp("kv"))
    way.run()
    return way


def test_however_it_is_reused_every_logit_is_that_of_a_computation_from_scratch(travelled: Journey) -> None:
    assert set(travelled.differences) == {"prefill", "continued", "ram", "branch", "window", "cancel", "disk"}
    assert {stage: value for stage, value in travelled.differences.items() if value > TOLERANCE} == {}


def test_what_can_be_continued_anywhere_gives_the_same_bits_however_it_is_reused(travelled: Journey) -> None:
    assert travelled.loaded.is_exact == (travelled.loaded.rule == BLOCKS)
    assert travelled.inexact == set()


def test_what_is_declared_is_what_is_reused(travelled: Journey) -> None:
    rule, reused = travelled.loaded.rule, travelled.reused
    assert rule == ZOO[travelled.loaded.name]
    told = {stage: finished.reuse for stage, finished in reused.items()}
    if rule.continuation is Continuation.CHUNK:
        assert reused["continued"].prefilled == MESSAGE
        assert told["window"].num_tokens == 41 > WINDOW
    if rule.policy is ReusePolicy.BLOCKS:
        disk = 67 if travelled.loaded.is_exact else 72  # where the message begins: its page is computed whole
        assert (told["window"].live, told["ram"].tiers["ram"], told["disk"].tiers["disk"]) == (41, 64, disk)
    else:
        assert told["disk"].tiers["disk"] == 75, "all but the last token of a prompt that was answered before"
    if rule == SNAPSHOTS:
        assert (told["window"].tiers["ram"], told["ram"].tiers["ram"]) == (41, 67)


@pytest.mark.parametrize("family", ZOO)
def test_a_held_state_of_one_other_token_is_noticed(family: str, device: str, tmp_path: Path) -> None:
    way = journey(loaded_model(family, device), tmp_path)
    talk = random_tokens(30)
    other = [*talk[:27], talk[27] % 90 + 3, *talk[28:]]
    said = way.say("other", other)
    assert way.largest_difference() < TOLERANCE
    way.loaded.seen.clear()
    way.engine.state.tokens[27] = talk[27]
    way.say("lied to", talk + said[len(talk) :] + random_tokens(MESSAGE, seed=1))
    if way.reused["lied to"].reuse.live:
        assert way.largest_difference() > 10 * TOLERANCE


LEAN = {
    "llama": {},
    "llama, with biases": {"attention_bias": True, "mlp_bias": True},
    "llama, rope of llama 3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "smollm3": {"no_rope_layers": [1, 0, 1], "use_sliding_window": False, "sliding_window": None},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False},
    "phi3": {"sliding_window": None},
}


@pytest.mark.parametrize("model", LEAN)
def test_our_own_network_is_right_on_the_same_journey(model: str, tmp_path: Path) -> None:
    stock = tiny_random_model(model.split(",")[0], **LEAN[model])
    stock.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model", ModelConfig(dtype="float32", weights="native", device="cpu"))
    assert isinstance(loaded.network, LeanNetwork)
    way = Journey(loaded, plain_logits(stock), tmp_path / "kv")
    way.run()
    assert {stage: value for stage, value in way.differences.items() if value > TOLERANCE} == {}
    assert way.reused["disk"].reuse.tiers["disk"] == 72
    assert way.inexact == set()
