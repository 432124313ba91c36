from __future__ import annotations

import random
from itertools import count
from typing import Any

import pytest
import torch

from kvchat.cache.block import common_prefix
from kvchat.engine.ahead import (
    LEAST_STEP,
    MOST_STEP,
    REST_S,
    Pulse,
    can_go_ahead,
    compute_ahead,
    has_room,
    keep_ways_back,
    step_tokens,
)
from tests.engine.talk import Talk
from tests.engine.test_holding import FAMILIES
from tests.tiny import random_tokens, tiny_model


def live_kv(talk: Talk) -> list[torch.Tensor]:
    length = len(talk.state.tokens)
    return [plane[:, :length].clone() for plane in talk.state.planes]


def scripted_prompts(num_edits: int, *, seed: int) -> list[list[int]]:
    """Prompts as a message is typed: it grows, shrinks, and changes in the middle, behind a conversation."""
    random_ = random.Random(seed)
    said, text = random_tokens(random_.randrange(1, 40), seed=seed), []
    prompts = []
    for _ in range(num_edits):
        kind = random_.random()
        if kind < 0.6 or not text:
            text = text + [random_.randrange(2, 300) for _ in range(random_.randrange(1, 6))]
        elif kind < 0.85:
            text = text[: -random_.randrange(1, 1 + len(text))]
        else:
            at = random_.randrange(len(text))
            text = [*text[:at], random_.randrange(2, 300), *text[at + random_.randrange(2) :]]
        prompts.append(said + text)
    return prompts


def follow(num_scripts: int, *, first_seed: int = 0) -> None:
    talk, fresh = Talk(tiny_model()), Talk(tiny_model())
    for seed in range(first_seed, first_seed + num_scripts):
        for prompt in scripted_prompts(1 + seed % 9, seed=seed):
            asked = count(0 if seed % 3 else random.Random(seed).randrange(9))
            list(compute_ahead(talk, talk.live, prompt, lambda: seed % 3 == 0 and next(asked) > 9))  # noqa: B023
            held = len(talk.state.tokens)
            assert talk.state.tokens == prompt[:held]
        if not talk.state.tokens:  # it was cancelled at once
            continue
        talk_kv = live_kv(talk)
        fresh.state.keep(0)
        list(fresh.hold(fresh.live, talk.state.tokens, lambda: False, chunk_tokens=256))
        for one, other in zip(talk_kv, live_kv(fresh), strict=True):
            assert torch.allclose(one, other, atol=1e-4)


def test_the_live_kv_after_any_edits_is_the_one_computed_from_scratch() -> None:
    follow(20)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_live_kv_after_ten_thousand_edit_scripts_is_the_one_computed_from_scratch() -> None:
    follow(10_000)


@pytest.mark.parametrize(("family", "ends_inside"), [("llama", True), ("falcon_h1", False)])
def test_a_step_is_of_as_many_tokens_as_a_key_can_wait_for(family: str, ends_inside: bool) -> None:
    talk = Talk(tiny_model(family, **FAMILIES.get(family, {})))
    pace: Any = talk.pace
    num_parts = talk.loaded.network.num_layers if ends_inside else 1
    assert talk.loaded.network.num_layers > 1
    for token_s, expected in ((1.0, LEAST_STEP), (0.001, 16), (1e-9, MOST_STEP)):
        pace.prefill_s_per_token = token_s * num_parts
        assert step_tokens(talk, talk.state) == expected


def test_steps_end_where_what_is_cut_back_to_would_have_to_be_let_go_of() -> None:
    talk = Talk(tiny_model("mistral", sliding_window=16, max_position_embeddings=4096))
    list(compute_ahead(talk, talk.live, random_tokens(2500), lambda: False))
    state = talk.state
    assert state.first_held == 0
    assert 1024 < len(state.tokens) < 2500
    assert not has_room(state, MOST_STEP)
    assert state.keep(100) == 100


def test_of_the_snapshots_of_many_steps_those_stay_that_are_ways_back() -> None:
    talk = Talk(tiny_model("falcon_h1", **FAMILIES["falcon_h1"]))
    prompt = random_tokens(60)
    for end in (20, 30, 40, 60):
        list(compute_ahead(talk, talk.live, prompt[:end], lambda: False))
    assert len(talk.state.taken) > 2
    keep_ways_back(talk.state, 19, 39)
    assert sorted(talk.state.taken) == [19, 39]
    assert common_prefix(talk.state.tokens, prompt) == 60


@pytest.mark.parametrize(("family", "can"), [("llama", True), ("falcon_h1", True), ("mamba", False)])
def test_models_that_go_on_token_by_token_compute_nothing_ahead(family: str, can: bool) -> None:
    assert can_go_ahead(Talk(tiny_model(family, **FAMILIES.get(family, {})))) is can


def test_steps_that_take_far_longer_than_usual_make_it_rest_for_a_while() -> None:
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    for _ in range(20):
        pulse.beat(8, 0.03)
        pulse.beat(1, 0.01)
    for seconds in (0.2, 0.2, 0.03, 0.2, 0.2):  # never three in a row
        pulse.beat(8, seconds)
    assert not pulse.is_resting
    for _ in range(3):
        pulse.beat(8, 0.2)
    assert pulse.is_resting
    now[0] = REST_S + 0.1
    assert not pulse.is_resting


def test_steps_of_another_size_are_no_measure() -> None:
    pulse = Pulse(lambda: 0.0)
    for _ in range(20):
        pulse.beat(1, 0.01)
    for _ in range(5):
        pulse.beat(64, 0.5)
    assert not pulse.is_resting
