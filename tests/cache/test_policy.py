"""What goes first: runs of trees that are made up, under a clock that is set by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from kvchat.bench.policy import TraceClock
from kvchat.bench.simulation import Geometry, Pool
from kvchat.cache.policy import LeastRecentlyUsed, make_policy
from kvchat.cache.rates import NUM_AGES, Rates
from kvchat.cache.worth import FACTORS, Worth
from tests.cache.arena import TINY_BLOCK_BYTES, computed_arena, tiny_cache

DAY_S = 86_400.0


def pool_of(num_blocks: int, clock: TraceClock, *, run_blocks: int = 1) -> tuple[Pool, Worth]:
    policy = make_policy("kvchat", 16, clock=clock)
    return Pool(Geometry(num_blocks, run_blocks), policy), policy


def test_what_is_gone_on_with_more_often_has_better_chances() -> None:
    """Every other conversation is gone on with a minute later, four times; the others never are."""
    clock = TraceClock()
    pool, policy = pool_of(40, clock)
    for number in range(200):
        clock.now_s += 3600
        pool.store([number * 100, number * 100 + 1])
        for turn in range(2, 6) if number % 2 == 0 else ():
            clock.now_s += 60
            pool.store([number * 100 + block for block in range(turn + 1)])
    clock.now_s += 3600
    tip = policy.rates.use([999_000, 999_001], clock.now_s)
    often = policy.rates.use([19_800 + block for block in range(3)], clock.now_s)
    assert policy.rates.level(often) > policy.rates.level(tip)


def test_worth_never_rises_with_age_and_rises_with_the_level() -> None:
    rates = Rates()
    for number in range(300):
        rates.use([number, -number - 1], number * 50.0)
        if number % 3 == 0:
            rates.use([number, -number - 1, 10_000 + number], number * 50.0 + 20)
    ages = [2.0 ** (step / 2) for step in range(NUM_AGES)]
    for level in range(0, 49, 8):
        worths = [rates.worth(level, age) for age in ages]
        assert worths == sorted(worths, reverse=True) and all(math.isfinite(worth) for worth in worths)
    assert rates.worth(40, 100.0) >= rates.worth(30, 100.0)


def test_a_pinned_run_outlives_others_but_ages_too() -> None:
    clock = TraceClock()
    pool, policy = pool_of(100, clock)
    pool.store([1])
    pinned = next(iter(policy._held))
    pinned.priority = 2
    policy.used(pinned)
    clock.now_s = 3600.0
    pool.store([2])
    clock.now_s = 2 * 3600.0
    assert policy.victim(lambda run: True).blocks == (2,)
    clock.now_s = 400 * DAY_S
    pool.store([3])
    clock.now_s += 60
    assert policy.victim(lambda run: True).blocks != (3,), "what was used a minute ago stays"
    assert policy.worth(pinned) < FACTORS[2] * policy.rates.worth(32, 3600.0)


def test_what_branched_off_goes_before_what_went_on() -> None:
    clock = TraceClock()
    pool, policy = pool_of(100, clock)
    pool.store([1, 2])
    clock.now_s = 60.0
    pool.store([1, 3])
    clock.now_s = 120.0
    assert policy.victim(lambda run: True).blocks == (2,)


def test_a_dearer_run_outlives_a_cheaper_one_of_the_same_age() -> None:
    clock = TraceClock()
    pool, policy = pool_of(10_000, clock)
    pool.store([1])
    pool.store(list(range(100, 4100)))
    assert policy.victim(lambda run: True).blocks == (1,)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 12), st.floats(0, 1e6), st.booleans()),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 30),
    st.booleans(),
)
def test_a_pool_keeps_its_budget_and_no_orphan_under_either_policy(
    asked: Sequence[tuple[int, int, float, bool]], num_blocks: int, is_lru: bool
) -> None:
    clock = TraceClock()
    policy = LeastRecentlyUsed(clock) if is_lru else make_policy("kvchat", 16, clock=clock)
    pool = Pool(Geometry(num_blocks, 3), policy)
    for number, length, later_s, is_branch in asked:
        clock.now_s += later_s
        blocks = [number * 1000 + block + (500 if is_branch and block > 2 else 0) for block in range(length)]
        pool.store(blocks)
        runs = set(pool._by_block.values())
        assert sum(run.num_blocks for run in runs) == num_blocks - pool._num_free <= num_blocks
        assert all(run.parent is None or run.parent in runs for run in runs), "an orphan"
        assert policy.victim(lambda run: not run.num_children) is not None
    while policy.victim(lambda run: not run.num_children) is not None:
        pool._evict()
    assert not pool._by_block


def test_what_can_go_is_offered_after_its_tip_was_left_behind() -> None:
    """A queue's head belonged in another queue by now: what is offered in its place is not lost."""
    tokens = [
        ([0, 0, 0, 1, 0, 0, 0, 1, 0], 0), ([0, 0, 1, 0, 0, 1, 1, 0, 1], 0), ([1, 0, 1, 1, 0], 0), ([0], 0),
        ([0, 0, 1, 1, 1], 0), ([0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], 1), ([0], 2), ([1, 0, 0, 1, 1], 2),
    ]  # fmt: skip
    cache = tiny_cache(
        None, ram_bytes=2 * TINY_BLOCK_BYTES, block_size=4, hash_function=lambda data: b"\0" * 16
    )
    for said, priority in tokens:
        cache.commit(said, computed_arena(said), len(said), priority=priority)
        cache.check_integrity()
