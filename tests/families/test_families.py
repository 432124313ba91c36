from __future__ import annotations

from pathlib import Path

import pytest

from kvchat.models import attention
from kvchat.models.loaded import LoadedModel
from kvchat.models.reuse import SNAPSHOTS, Continuation, ReusePolicy
from kvchat.models.stock import describe
from tests.families.shrink import WINDOW, random_tokens, tiny_random_model
from tests.families.sweep import MESSAGE, TOLERANCE, Journey, plain_logits
from tests.families.zoo import ZOO


def loaded_model(family: str) -> LoadedModel:
    model = tiny_random_model(family)
    attention.enable(model)
    return describe(model, name=family)


def journey(loaded: LoadedModel, folder: Path) -> Journey:
    return Journey(loaded, plain_logits(loaded.model), folder)


@pytest.fixture(scope="module", params=ZOO)
def travelled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Journey:
    way = journey(loaded_model(request.param), tmp_path_factory.mktemp("kv"))
    way.run()
    return way


def test_however_it_is_reused_every_logit_is_that_of_a_computation_from_scratch(travelled: Journey) -> None:
    assert set(travelled.differences) == {"prefill", "continued", "ram", "branch", "window", "cancel", "disk"}
    assert {stage: value for stage, value in travelled.differences.items() if value > TOLERANCE} == {}


def test_what_is_declared_is_what_is_reused(travelled: Journey) -> None:
    rule, reused = travelled.loaded.rule, travelled.reused
    assert rule == ZOO[travelled.loaded.name]
    told = {stage: finished.reuse for stage, finished in reused.items()}
    if rule.continuation is Continuation.CHUNK:
        assert reused["continued"].prefilled == MESSAGE
        assert told["window"].num_tokens == 41 > WINDOW
    if rule.policy is ReusePolicy.BLOCKS:
        assert (told["window"].live, told["ram"].ram, told["disk"].disk) == (41, 64, 72)
    else:
        assert told["disk"].disk == 75, "all but the last token of a prompt that was answered before"
    if rule == SNAPSHOTS:
        assert (told["window"].ram, told["ram"].ram) == (41, 67)


@pytest.mark.parametrize("family", ZOO)
def test_a_held_state_of_one_other_token_is_noticed(family: str, tmp_path: Path) -> None:
    way = journey(loaded_model(family), tmp_path)
    talk = random_tokens(30)
    other = [*talk[:27], talk[27] % 90 + 3, *talk[28:]]
    said = way.say("other", other)
    assert way.largest_difference() < TOLERANCE
    way.loaded.seen.clear()
    way.engine.state.tokens[27] = talk[27]
    way.say("lied to", talk + said[len(talk) :] + random_tokens(MESSAGE, seed=1))
    if way.reused["lied to"].reuse.live:
        assert way.largest_difference() > 10 * TOLERANCE
