"""Each measurement runs on a tiny model, and its rows have what they promise. No time is looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvchat.backends.local import LocalBackend
from kvchat.bench import codec, decode, histories, lookup, memory, prefill, restore, start, ttft
from kvchat.bench.contender import Setup
from kvchat.bench.histories import MODES
from kvchat.bench.measure import Row, Spread
from kvchat.config import Config

MakeConfig = Callable[..., Config]


@pytest.fixture
def setup(make_config: MakeConfig) -> Setup:
    return Setup(make_config(), threads=1)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that are no processes: they start sooner, and would only be in each other's way where time counts."""
    for module in (histories, lookup):
        monkeypatch.setattr(module, "ProcessBackend", LocalBackend)


def shown(row: Row, **expected: object) -> dict[str, object]:
    """The row's JSON, after its cells were looked at."""
    assert all(row.cells().values())
    found = row.to_json()
    assert {name: found[name] for name in expected} == expected
    return found


def is_whole(spread: Spread, runs: int) -> bool:
    return spread.runs == runs and 0 < spread.low <= spread.median <= spread.high


@pytest.mark.usefixtures("in_this_process")
def test_ttft_finds_the_history_where_it_says(setup: Setup) -> None:
    (row,) = ttft.measure(setup, lengths=[200], repeats=2)
    assert set(row.ttft_ms) == set(MODES)
    assert all(is_whole(spread, 2) for spread in row.ttft_ms.values())
    assert 0 < row.message < 200
    found = shown(row, bench="ttft", history_tokens=200)
    assert {"message_tokens", "ttft_ms", "times_live", "kv_bytes", "flops_saved"} <= set(found)
    assert set(ttft.chart([row]).lines) == {
        "kvchat, without the cache",
        "kvchat, live",
        "kvchat, from RAM",
        "kvchat, from disk",
    }


@pytest.mark.slow
def test_ttft_asks_contenders_the_same_prompt(setup: Setup) -> None:
    (row,) = ttft.measure(setup, ["nocache", "transformers"], lengths=[100], repeats=1)
    assert set(row.ttft_ms) == {*MODES, "transformers"}
    assert set(row.times_live) == {"ram", "disk", "none", "transformers"}


def test_decode_is_paired_with_each_contender(setup: Setup) -> None:
    (deep,) = decode.measure(setup, ["transformers"], lengths=[40], repeats=2)
    found = shown(deep, bench="decode", depth=40)
    assert set(found["tokens_per_s"]) == {"kvchat", "transformers"}  # type: ignore[call-overload]
    assert set(deep.times_theirs) == {"transformers"}
    assert deep.theory.bytes_read(40) == deep.theory.token_bytes + 40 * deep.theory.kv_bytes_per_token > 0
    assert deep.theory.share_of_bandwidth(40, 100.0) > 0
    assert decode.chart([deep]).x == [40]


@pytest.mark.slow
def test_prefill_is_paired_with_each_contender(setup: Setup) -> None:
    (long,) = prefill.measure(setup, ["nocache", "transformers"], lengths=[70], repeats=1)
    assert all(is_whole(speed, 1) for speed in long.tokens_per_s.values())
    assert set(long.times_theirs) == {"nocache", "transformers"}
    assert shown(long, bench="prefill", length=70)["flops"] == 2 * 70 * long.theory.num_parameters
    assert prefill.chart([long]).x == [70]


@pytest.mark.usefixtures("in_this_process")
def test_restoring_is_measured_from_each_tier(make_config: MakeConfig) -> None:
    (row,) = restore.measure(make_config(), lengths=[150], repeats=1)
    assert set(row.ms) == {"computed", "ram", "disk"}
    assert set(shown(row, bench="restore")["restored_tokens"]) == {"computed", "ram", "disk"}  # type: ignore[call-overload]


@pytest.mark.usefixtures("in_this_process")
def test_lookup_answers_the_same_with_and_without(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "NUM_TOKENS", 24)
    config = make_config(model__draft=4)
    for row in lookup.measure(config, repeats=1):
        assert row.same == row.length == 24
        assert row.drafted >= row.accepted
        shown(row, bench="lookup")


@pytest.mark.slow
def test_memory_is_that_of_a_process(setup: Setup) -> None:
    (row,) = memory.measure(setup, lengths=[80])
    assert row.peak_bytes["kvchat"] >= row.ready_bytes["kvchat"] > 10_000_000
    shown(row, bench="memory", length=80)


@pytest.mark.slow
def test_the_start_is_that_of_the_real_program(setup: Setup) -> None:
    (row,) = start.measure(setup, repeats=1)
    assert set(row.ms) == {"takes keys", "-p"}
    assert all(is_whole(spread, 1) for spread in row.ms.values())
    shown(row, bench="start")


def test_int8_is_close_to_exact_and_half_the_size(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "PREFIX_TOKENS", 128)
    monkeypatch.setattr(codec, "NUM_POSITIONS", 16)
    (row,) = codec.measure(make_config(), texts=1)
    assert 0 < row.kl < 0.1
    assert row.bytes_int8 < row.bytes_raw / 2
    assert 0.5 < row.bytes_packed / row.bytes_raw < 0.9
    shown(row, bench="codec")
