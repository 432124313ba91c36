"""Traces, and what a replay of them hits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvchat.bench import chats, traces
from kvchat.bench.policy import USUAL_COST, TraceClock, hits, measure, replay
from kvchat.bench.simulation import Geometry, Optimum
from kvchat.bench.traces import Request, Trace
from kvchat.cache.base import CacheSettings
from kvchat.cache.block import KVLayout
from kvchat.cache.policy import LeastRecentlyUsed, make_policy
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.request import Finished
from kvchat.engine.request import Request as EngineRequest
from kvchat.engine.sampling import SamplingParams
from kvchat.errors import UsageError
from tests.engine.talk import Talk
from tests.tiny import tiny_model


def trace_of(*prompts: str) -> Trace:
    """One block a letter, one prompt a second; a block is its letter and all before it."""
    numbers: dict[str, int] = {}
    chains = [
        tuple(numbers.setdefault(prompt[: end + 1], len(numbers)) for end in range(len(prompt)))
        for prompt in prompts
    ]
    requests = [Request(float(at), len(chain), 0, chain, len(chain)) for at, chain in enumerate(chains)]
    return Trace(1, tuple(requests))


def held(trace: Trace, num_blocks: int, *, is_optimal: bool) -> list[int]:
    clock = TraceClock()
    policy = Optimum(trace) if is_optimal else LeastRecentlyUsed(clock)
    return list(replay(trace, Geometry(num_blocks, 1), policy, clock))


def test_the_least_recently_used_goes_and_the_optimum_knows_better() -> None:
    trace = trace_of("a", "b", "c", "a", "b", "c")
    assert held(trace, 2, is_optimal=False) == [0, 0, 0, 0, 0, 0]
    assert sum(held(trace, 2, is_optimal=True)) == 2


def test_a_prefix_is_hit_and_a_fork_stores_what_is_new() -> None:
    assert held(trace_of("abc", "abd", "abc", "abde"), 10, is_optimal=False) == [0, 2, 3, 3]


def test_room_for_all_hits_whatever_was_there_before_under_each_policy() -> None:
    trace = trace_of("abc", "x", "abcd", "xy", "abcde")
    for is_optimal in (False, True):
        assert held(trace, 100, is_optimal=is_optimal) == [0, 0, 3, 1, 4]


def test_later_blocks_count_for_more_seconds() -> None:
    trace = trace_of("abcd", "abcd")
    found = hits(trace, iter([0, 2]), USUAL_COST)
    assert found.tokens == 0.25 and found.seconds < 0.25


def test_the_form_of_mooncake_is_read_and_its_block_size_seen(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 3000, "input_length": 700, "output_length": 3, "hash_ids": [0, 2]},
        {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    trace = traces.read(path)
    assert trace.block_size == 512 and [request.time_s for request in trace.requests] == [0.0, 3.0]
    assert trace.requests[0].blocks == (0, 1) and trace.num_unique == 3


def test_a_made_up_trace_is_the_same_again_and_comes_back_from_its_file(tmp_path: Path) -> None:
    trace = chats.made(days=5, seed=3)
    assert trace == chats.made(days=5, seed=3) != chats.made(days=5, seed=4)
    path = tmp_path / "made.jsonl"
    traces.write(trace, path)
    again = traces.read(path)
    assert [request.blocks for request in again.requests] == [request.blocks for request in trace.requests]
    assert [request.num_asked for request in again.requests] == [
        request.num_asked for request in trace.requests
    ]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1, 1]}', "\x00"],
)
def test_what_is_no_trace_is_refused_with_a_reason(tmp_path: Path, text: str) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError):
        traces.read(path)


def test_on_made_up_chats_ours_is_no_worse_than_lru_by_a_hundredth(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    traces.write(chats.made(days=12, seed=1), path)
    for row in measure(path, budgets=(0.03,)):
        assert row.kvchat.seconds >= 0.99 * row.lru.seconds
        assert row.optimum.seconds >= row.lru.seconds
        assert {"lru", "kvchat", "optimum", "closed"} <= row.to_json().keys()


@pytest.mark.parametrize("num_requests", [250, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["kvchat", "lru"])
def test_the_cache_hits_exactly_what_the_simulation_says(name: str, num_requests: int) -> None:
    made = chats.made(days=60, seed=5, block_size=256)
    trace = Trace(1, tuple(_in_blocks(request) for request in made.requests[:num_requests]))
    geometry = Geometry(160, 20, 8)
    clock = TraceClock()
    said = list(replay(trace, geometry, make_policy(name, 1, clock=clock), clock))
    clock = TraceClock()
    layout = KVLayout(((1, 1), (1, 1)), "float32")
    cache = PrefixCache(layout, b"model", CacheSettings(ram_bytes=160 * 8, block_size=1))
    cache._ram._policy = make_policy(name, 1, clock=clock)
    planes = [torch.zeros(1, 4096, 1), torch.zeros(1, 4096, 1)]
    found = []
    for request in trace.requests:
        clock.now_s = request.time_s
        match = cache.match(request.blocks[: request.num_asked])
        found.append(match.num_tokens)
        with cache.lease(match):
            pass
        cache.commit(request.blocks, planes, len(request.blocks))
    cache.check_integrity()
    assert found == said and sum(found) > num_requests


@pytest.mark.parametrize("num_requests", [150, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["kvchat", "lru"])
def test_an_engine_takes_up_exactly_what_the_simulation_says(name: str, num_requests: int) -> None:
    """From RAM alone: nothing is live from one prompt to the next, and each asks for one token behind its blocks."""
    made = chats.made(days=60, seed=6, block_size=256)
    trace = Trace(1, tuple(_asking(request) for request in made.requests[:num_requests]))
    clock = TraceClock()
    engine = Talk(tiny_model(max_position_embeddings=8192))
    engine.warm_up()
    engine.pace.measure = lambda num_tokens, seconds: None  # type: ignore[method-assign]
    engine.pace.prefill_s_per_token = 0.0  # loading always pays
    block_bytes = 16 * engine.kv_bytes_per_token
    assert engine.kv_layout is not None
    cache = PrefixCache(engine.kv_layout, b"model", CacheSettings(ram_bytes=48 * block_bytes, block_size=16))
    cache._ram._policy = make_policy(name, 16, clock=clock)
    engine.cache = cache
    found = []
    for request in trace.requests:
        clock.now_s = request.time_s
        prompt = [token for block in request.blocks for token in _tokens(block)] + [1]
        asked = engine.generate(EngineRequest(prompt, SamplingParams(), max_tokens=1), lambda: False)
        (reuse,) = [event.reuse for event in asked if isinstance(event, Finished)]
        found.append(reuse.tiers.get("ram", 0) // 16)
        assert reuse.num_tokens == 16 * found[-1]
        engine.store()
        engine.state.keep(0)
    clock = TraceClock()
    policy = make_policy(name, 16, clock=clock)
    said = list(replay(trace, Geometry(48, 6, block_bytes), policy, clock))
    cache.check_integrity()
    assert found == said and sum(found) > num_requests


def _asking(request: Request) -> Request:
    """A request whose tokens are what were the blocks of its prompt."""
    blocks = request.blocks[: request.num_asked]
    return Request(request.time_s, len(blocks), 0, blocks, len(blocks))


def _tokens(block: int) -> list[int]:
    """Sixteen tokens that no other block has."""
    return [block // 50**power % 50 for power in range(4)] * 4


def _in_blocks(request: Request) -> Request:
    """A request whose tokens are what were blocks."""
    return Request(request.time_s, request.num_asked, 0, request.blocks, request.num_asked)
