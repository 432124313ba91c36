from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvchat.cache.base import CacheSettings
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.engine import Engine
from kvchat.engine.request import EngineEvent, Finish, Finished, Request, Token
from kvchat.engine.sampling import SamplingParams
from kvchat.engine.sequence import LiveSequence
from kvchat.engine.token_rules import TokenRules
from kvchat.models.loaded import LoadedModel
from tests.engine.test_holding import FAMILIES as RECURRENT
from tests.families.shrink import random_tokens as few_tokens
from tests.models.stock.test_long_rope import THRESHOLD, long_rope_model
from tests.tiny import random_tokens, said, tiny_model

NEVER = lambda: False  # noqa: E731
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "lfm2": RECURRENT["lfm2"],
    "mamba": RECURRENT["mamba"],
}
WAYS = {
    "greedy": SamplingParams(),
    "drawn": SamplingParams(temperature=1.1, top_k=30, seed=4),
    "ruled": SamplingParams(
        repetition_penalty=1.3, rules=TokenRules(no_repeat_ngram=2, ends=frozenset({1}), min_tokens=4)
    ),
}


def engine_of(loaded: LoadedModel, **options: Any) -> Engine:
    engine = Engine(loaded, chunk_tokens=16, **options)
    engine.pace.measure = lambda num_tokens, seconds: None  # type: ignore[method-assign]
    return engine


def ids_in(events: Sequence[EngineEvent]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


def in_turns(*streams: Iterator[EngineEvent]) -> list[list[EngineEvent]]:
    """The events of several answers, one of each in turn until all have ended."""
    heard: list[list[EngineEvent]] = [[] for _ in streams]
    going = set(range(len(streams)))
    while going:
        for number in sorted(going):
            event = next(streams[number], None)
            if event is None:
                going.remove(number)
            else:
                heard[number].append(event)
    return heard


@pytest.mark.parametrize("draft", [0, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", MODELS)
def test_answers_of_sequences_that_take_turns_equal_each_alone(family: str, way: str, draft: int) -> None:
    loaded = tiny_model(family, **MODELS[family])
    prompts = [random_tokens(37, seed=1), random_tokens(21, seed=2), random_tokens(37, seed=1)[:30]]
    requests = [Request(prompt, WAYS[way], max_tokens=9) for prompt in prompts]

    def alone(request: Request) -> list[int]:
        engine = engine_of(loaded, draft=draft)
        return ids_in(list(engine.generate(engine.new_sequence(), request, NEVER)))

    engine = engine_of(loaded, draft=draft)
    live = [engine.new_sequence() for _ in requests]
    pairs = zip(live, requests, strict=True)
    heard = in_turns(*(engine.generate(one, request, NEVER) for one, request in pairs))
    assert [ids_in(events) for events in heard] == [alone(request) for request in requests]
    for one, prompt, events in zip(live, prompts, heard, strict=True):
        whole = prompt + said(loaded, ids_in(events))
        assert one.state.tokens == whole[: len(one.state.tokens)]
        assert len(one.state.tokens) >= len(prompt)


def test_a_short_and_a_long_conversation_take_turns_on_one_model_with_two_regimes_of_keys() -> None:
    loaded = long_rope_model()
    short, long = few_tokens(THRESHOLD - 3, seed=1), few_tokens(THRESHOLD + 20, seed=2)
    alone = [
        ids_in(list(engine.generate(engine.new_sequence(), Request(prompt, max_tokens=8), NEVER)))
        for prompt in (short, long)
        if (engine := engine_of(long_rope_model()))
    ]
    engine = engine_of(loaded)
    streams = [
        engine.generate(engine.new_sequence(), Request(prompt, max_tokens=8), NEVER)
        for prompt in (short, long)
    ]
    assert [ids_in(events) for events in in_turns(*streams)] == alone


def cached(loaded: LoadedModel) -> Engine:
    engine = engine_of(loaded)
    engine.new_sequence()
    assert engine.kv_layout is not None
    engine.cache = PrefixCache(engine.kv_layout, b"all", CacheSettings(ram_bytes=2**22, block_size=8))
    return engine


def told(engine: Engine, live: LiveSequence, request: Request) -> tuple[list[int], Finished]:
    *events, finished = engine.generate(live, request, NEVER)
    assert isinstance(finished, Finished)
    return ids_in(events), finished


def test_what_one_sequence_stored_another_takes_up() -> None:
    engine = cached(tiny_model())
    first, second = engine.new_sequence(), engine.new_sequence()
    prompt = random_tokens(40)
    expected, _ = told(engine, first, Request(prompt, max_tokens=4))
    engine.store(first)
    again, finished = told(engine, second, Request(prompt, max_tokens=4))
    assert (again, finished.reuse.tiers["ram"]) == (expected, 32)


def test_a_request_that_stores_nothing_leaves_nothing_in_the_cache() -> None:
    engine = cached(tiny_model())
    live, other = engine.new_sequence(), engine.new_sequence()
    request = Request(random_tokens(40), max_tokens=4, shared=24, stores=False)
    told(engine, live, request)
    engine.store(live, is_kept=False)
    assert told(engine, other, Request(request.prompt, max_tokens=4))[1].reuse.num_tokens == 0


def test_warming_stores_only_if_it_is_told_to() -> None:
    engine = cached(tiny_model())
    live, other, tokens = engine.new_sequence(), engine.new_sequence(), random_tokens(40)
    list(engine.warm(live, tokens, NEVER, store=False))
    assert live.state.tokens == tokens
    assert told(engine, other, Request(tokens, max_tokens=1))[1].reuse.num_tokens == 0
    list(engine.warm(live, tokens, NEVER))
    other.state.keep(0)
    assert told(engine, other, Request(tokens, max_tokens=1))[1].reuse.tiers["ram"] == 32


@pytest.mark.parametrize("draft", [0, 3])
@pytest.mark.parametrize("after", [1, 3, 6])
def test_an_answer_that_is_over_ends_there_and_the_state_with_it(after: int, draft: int) -> None:
    engine, prompt = engine_of(tiny_model(), draft=draft), random_tokens(37)
    free, _ = told(engine, engine.new_sequence(), Request(prompt, max_tokens=12))
    live, heard = engine.new_sequence(), list[int]()
    for event in engine.generate(live, Request(prompt, max_tokens=12), NEVER, lambda: len(heard) >= after):
        if isinstance(event, Token):
            heard.append(event.id)
    assert isinstance(event, Finished)
    assert (heard, event.reason, event.num_generated) == (free[:after], Finish.STOP, after)
    whole = prompt + said(engine.loaded, heard)
    assert live.state.tokens == whole[: len(live.state.tokens)]
    assert told(engine, live, Request(prompt, max_tokens=12))[0] == free


def test_conversations_of_both_regimes_lie_in_one_cache(tmp_path: Path) -> None:
    engine = cached(long_rope_model())
    tokens = few_tokens(90)
    for length in (50, 90, 50, 90):
        live = engine.new_sequence()
        _, finished = told(engine, live, Request(tokens[:length], max_tokens=1))
        engine.store(live)
    assert finished.reuse.tiers["ram"] == 88
