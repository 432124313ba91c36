from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kvchat.engine.foresight import LENGTHS, Fixed, HitRates, Measured

Cost = Callable[[int], float]


def steep(num_tokens: int) -> float:
    """A machine on which a forward of several tokens costs what they cost one by one."""
    return 0.01 * num_tokens


def flat(num_tokens: int) -> float:
    """One on which a few tokens more cost little."""
    return 0.01 + 0.0008 * (num_tokens - 1)


def stepped(num_tokens: int) -> float:
    """One with a faster way for a single token."""
    return 0.01 if num_tokens == 1 else 0.025 + 0.0005 * num_tokens


def simulated(
    foresight: Measured,
    cost: Cost,
    *,
    right: float,
    evidence: int,
    found: float = 1.0,
    num_tokens: int = 2000,
) -> float:
    """How many times faster the answer comes than without guesses, of which each is `right` so often."""
    chance = random.Random(7)
    said, seconds = 0, 0.0
    while said < num_tokens:
        is_found = chance.random() < found
        drafted = foresight.length(evidence, 100) if is_found else 0
        accepted, guessed = 0, max(drafted, 1)
        while accepted < guessed and chance.random() < right:
            accepted += 1
        if is_found:
            foresight.judge(evidence, guessed, accepted)
        accepted = min(accepted, drafted)
        took = cost(1 + drafted)
        foresight.measure(1 + drafted, 1 + accepted, took * chance.uniform(0.95, 1.1))
        said += 1 + accepted
        seconds += took
    return said * cost(1) / seconds


@pytest.mark.parametrize("cost", [flat, steep, stepped])
@pytest.mark.parametrize("evidence", [2, 6, 20])
@pytest.mark.parametrize("right", [0.0, 0.05, 0.3])
def test_guesses_that_are_wrong_cost_next_to_nothing(cost: Cost, evidence: int, right: float) -> None:
    assert simulated(Measured(), cost, right=right, evidence=evidence) > 0.97


@pytest.mark.parametrize(("cost", "least"), [(flat, 4.0), (stepped, 3.0)])
def test_a_quotation_is_several_times_faster(cost: Cost, least: float) -> None:
    assert simulated(Measured(), cost, right=0.98, evidence=20) > least


def test_nothing_is_gained_and_nothing_lost_where_tokens_cost_the_same_together() -> None:
    assert 0.97 < simulated(Measured(), steep, right=0.98, evidence=20) <= 1.0


@pytest.mark.parametrize("cost", [flat, stepped])
def test_a_quotation_after_much_free_text_is_noticed(cost: Cost) -> None:
    foresight = Measured()
    simulated(foresight, cost, right=0.1, evidence=6, found=0.2, num_tokens=3000)
    assert simulated(foresight, cost, right=0.97, evidence=6, num_tokens=300) > 1.5


def test_free_text_after_a_quotation_is_noticed() -> None:
    foresight = Measured()
    simulated(foresight, stepped, right=0.98, evidence=6, num_tokens=300)
    assert simulated(foresight, stepped, right=0.1, evidence=6, num_tokens=1000) > 0.95


def test_longer_drafts_are_made_where_more_comes_true() -> None:
    lengths = []
    for right in (0.5, 0.99):
        foresight = Measured()
        simulated(foresight, flat, right=right, evidence=6)
        lengths.append(foresight.length(6, 100))
    assert 0 < lengths[0] < lengths[1] == LENGTHS[-1]


def test_no_draft_is_longer_than_there_is_room() -> None:
    foresight = Measured()
    simulated(foresight, flat, right=0.99, evidence=20)
    assert [foresight.length(20, room) for room in (0, 1, 2, 3, 7)] == [0, 1, 1, 3, 7]
    assert [Fixed(5).length(1, room) for room in (0, 3, 9)] == [0, 3, 5]


def test_nothing_is_drafted_until_one_token_was_measured() -> None:
    assert Measured().length(20, 100) == 0


def test_rates_follow_what_came_true_for_the_evidence_it_had() -> None:
    rates, untouched = HitRates(), HitRates()
    for _ in range(100):
        rates.add(20, 4, 4)
        rates.add(2, 4, 0)
    assert rates.of(20) > 0.99
    assert rates.of(2) < 0.01
    assert rates.of(6) == untouched.of(6)
