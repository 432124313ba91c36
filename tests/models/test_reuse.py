from __future__ import annotations

import pytest

from kvchat.models.reuse import Continuation, ReusePolicy, reuse_rule
from kvchat.models.stock.network import describe
from tests.families.shrink import random_tokens, tiny_random_model
from tests.families.sweep import plain_logits
from tests.tiny import tiny_model

BLOCKS, SNAPSHOTS, NONE = ReusePolicy.BLOCKS, ReusePolicy.SNAPSHOTS, ReusePolicy.NONE
CHUNK, ONE_TOKEN = Continuation.CHUNK, Continuation.ONE_TOKEN


@pytest.mark.parametrize(
    ("family", "overrides", "policy", "continuation"),
    [
        ("llama", {}, BLOCKS, CHUNK),
        ("gemma2", {"sliding_window": 16}, BLOCKS, CHUNK),
        ("mamba", {"state_size": 8}, SNAPSHOTS, ONE_TOKEN),
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, SNAPSHOTS, CHUNK),
        ("lfm2", {"layer_types": ["full_attention"] * 3}, BLOCKS, CHUNK),
    ],
)
def test_a_model_gets_the_rule_of_its_family_or_of_its_layers(
    family: str, overrides: dict[str, object], policy: ReusePolicy, continuation: Continuation
) -> None:
    rule = reuse_rule(tiny_model(family, **overrides).model)
    assert (rule.policy, rule.continuation) == (policy, continuation)


def test_a_family_that_nobody_measured_gets_the_safe_side() -> None:
    model = tiny_model("lfm2", layer_types=["conv", "full_attention", "conv"]).model
    model.config.model_type = "brand_new"
    assert reuse_rule(model).continuation is ONE_TOKEN
    model.config.layer_types = ["unheard_of"] * 3
    assert reuse_rule(model).policy is NONE


def test_every_rule_falls_back_to_computing_everything_anew() -> None:
    for family in ("llama", "mamba"):
        weaker = list(reuse_rule(tiny_model(family).model).weaker())
        assert weaker[-1].policy is NONE
        assert len(set(weaker)) == len(weaker)


@pytest.mark.parametrize("family", ["rwkv", "openai-gpt", "moshi"])
def test_a_model_whose_state_cannot_be_followed_computes_everything_for_every_token(family: str) -> None:
    loaded = describe(tiny_random_model(family), name=family)
    assert loaded.rule.continuation is Continuation.RESTART
    state, tokens, expected = loaded.new_state(), random_tokens(12), plain_logits(loaded.model)
    for start, end in ((0, 9), (9, 10), (10, 12)):
        logits = loaded.forward(tokens[start:end], state)
        assert (logits - expected(tokens[:end])[-1]).abs().max() < 1e-4
