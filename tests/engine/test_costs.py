from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvchat.cache.base import CacheSettings
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.costs import Costs, packed, unpack
from kvchat.engine.pace import Pace
from kvchat.engine.request import Finished, Request
from tests.cache.arena import TINY, tiny_cache
from tests.engine.talk import Talk
from tests.tiny import random_tokens, tiny_model


def test_costs_are_medians_and_lines_between_them() -> None:
    costs = Costs()
    assert costs.of(1) == 0.0
    for seconds in (1.0, 9.0, 1.0):
        costs.add(1, seconds)
    assert costs.of(1) == 1.0
    for seconds in (50.0, 4.0):  # the first of a size sets things up
        costs.add(4, seconds)
    assert (costs.of(4), costs.of(2)) == (4.0, 2.0)
    assert 4.0 < costs.of(7) < 7.0, "what was never tried is thought cheap"


def forward_s(num_tokens: int, held: int) -> float:
    """A machine: some seconds a forward, some a token, and some for each token that stands before."""
    return 0.01 + num_tokens * (0.001 + held * 1e-7)


def prefill(pace: Pace, num_tokens: int, held: int = 0) -> float:
    """Compute so many tokens in chunks as an engine does; how long that took."""
    total = 0.0
    for start in range(0, num_tokens, 256):
        size = min(256, num_tokens - start)
        seconds = forward_s(size, held + start)
        pace.measure(size, seconds)
        total += seconds
    return total


def started() -> Pace:
    """A fresh process: its first forwards are far slower than all others."""
    pace = Pace()
    for size in (16, 1, 64):
        pace.measure(size, 20 * forward_s(size, 0))
    return pace


def test_a_fresh_process_claims_nothing_that_it_has_not_measured() -> None:
    pace = started()
    assert pace.saved_s(4000) == 0.0
    assert pace.forward_s(256) > 0.0, "for decisions a guess will do"
    pace.measure(12, forward_s(12, 4000))
    assert pace.saved_s(4000) == 0.0


@pytest.mark.parametrize("num_tokens", [600, 1024, 4000, 16_000])
def test_what_was_saved_is_about_what_computing_it_took(num_tokens: int) -> None:
    pace = started()
    took = prefill(pace, num_tokens)
    assert 0.7 * took < pace.saved_s(num_tokens) < 1.1 * took


@given(st.lists(st.integers(1, 300), max_size=30), st.integers(1, 5000))
def test_no_more_is_claimed_than_computing_takes(sizes: list[int], num_tokens: int) -> None:
    pace = started()
    for size in sizes:
        pace.measure(size, forward_s(size, 0))
    assert pace.saved_s(num_tokens) <= prefill(Pace(), num_tokens) * 1.0001


def test_what_is_known_of_small_forwards_is_what_a_large_one_takes_at_least() -> None:
    pace = started()
    for _ in range(3):
        pace.measure(64, forward_s(64, 0))
    assert 0.0 < pace.saved_s(256) == forward_s(64, 0) < forward_s(256, 0)


def test_one_table_is_shared_by_what_drafts_and_what_prefills() -> None:
    engine = Talk(tiny_model(), draft=None)
    engine.warm_up()
    before = len(engine.pace.costs._samples[1])
    list(engine.generate(Request(random_tokens(20), max_tokens=12), lambda: False))
    assert len(engine.pace.costs._samples[1]) > before, "what decoding measures stands there too"
    assert engine.pace.costs.of(1) > 0.0 and engine.pace.step_s > 0.0


def test_costs_are_kept_from_run_to_run_by_model(tmp_path: Path) -> None:
    first = tiny_cache(tmp_path / "kv")
    pace = Pace()
    pace.keep_in(first)
    assert pace.saved_s(1000) == 0.0
    prefill(pace, 1024)
    assert first.close()
    again, other = Pace(), Pace()
    again.keep_in(tiny_cache(tmp_path / "kv"))
    assert again.saved_s(1000) == pytest.approx(pace.saved_s(1000), rel=0.2) and again.saved_s(1000) > 0
    other.keep_in(
        PrefixCache(TINY, b"another model", CacheSettings(disk_bytes=2**20, disk_root=tmp_path / "kv"))
    )
    assert other.saved_s(1000) == 0.0


def test_a_cache_that_may_not_write_or_has_no_disk_keeps_nothing(tmp_path: Path) -> None:
    for cache in (tiny_cache(tmp_path / "kv", mode="ro"), tiny_cache(None)):
        pace = Pace()
        pace.keep_in(cache)
        prefill(pace, 1024)
        cache.close()
    assert not (tmp_path / "kv").exists()


def test_what_was_kept_on_another_machine_says_nothing_here() -> None:
    costs, taken = Costs(), Costs()
    for _ in range(2):
        costs.add(1, 0.5)
    content = packed(costs, "here")
    unpack(content, "there", taken)
    assert taken.of(1) == 0.0
    unpack(content, "here", taken)
    assert taken.of(1) == 0.5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 60_000,
        b'{"machine": "here"}',
        b'{"machine": "here", "costs": [1]}',
        b'{"machine": "here", "costs": {"1": "x", "256": -1, "0": 1, "-4": 1, "1e3": 1, "9999999999": 1}}',
        b'{"machine": "here", "costs": {"256": 1e999, "2": NaN, "4": 1e300, "8": null, "16": []}}',
    ],
)
def test_what_is_no_table_is_left_out(content: bytes) -> None:
    costs = Costs()
    unpack(content, "here", costs)
    assert costs.num_sizes == 0 and costs.rate == 0.0


def test_the_cache_counts_as_saved_only_what_is_known(tmp_path: Path) -> None:
    engine = Talk(tiny_model(), chunk_tokens=256)
    engine.warm_up()
    layout = engine.kv_layout
    assert layout is not None
    settings = CacheSettings(ram_bytes=2**24, disk_bytes=2**24, disk_root=tmp_path / "kv")
    engine.cache = PrefixCache(layout, b"m", settings)
    prompt = random_tokens(20)
    for _ in range(2):
        events = list(engine.generate(Request(prompt, max_tokens=1), lambda: False))
        engine.store()
        assert isinstance(events[-1], Finished)
    stats = engine.cache.stats.process
    assert stats.hit_tokens > 0 and stats.saved_s == 0.0
