"""Answers that are made at once: each gets what it would get alone, to the bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvchat.cache.base import CacheSettings
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.batch import SLICE_S, Batch
from kvchat.engine.engine import Engine
from kvchat.engine.job import Job, JobKind
from kvchat.engine.request import EngineEvent, Finish, Finished, Progress, Request, Token, Wanting
from kvchat.engine.rounds import Rounds
from kvchat.engine.sampling import SamplingParams
from kvchat.models.kv_state import KVState
from kvchat.models.loaded import LoadedModel
from tests.engine.test_sequence import WAYS
from tests.models.lean.test_network import WIDE, folder_of, loaded_from
from tests.tiny import random_tokens, said

NEVER = lambda: False  # noqa: E731
KINDS = {
    "llama": ("float32", "native"),
    "llama, with biases": ("float32", "int8"),
    "smollm3": ("float32", "native"),
    "qwen3": ("float32", "int4"),
    "phi3": ("float32", "native"),
    "llama, tied": ("bfloat16", "int8"),
}
PROMPTS = [random_tokens(length, seed=length) for length in (37, 150, 9, 64)]
REPEATED = [7, 8, 9, 10, 11] * 8
"""What comes next is guessed here."""


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    dtype, weights = KINDS[request.param]
    folder = folder_of(request.param, tmp_path_factory.mktemp("batch") / "model", **WIDE)
    return loaded_from(folder, dtype, weights=weights)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("plain") / "model"
    return loaded_from(folder_of("llama", folder, **WIDE, max_position_embeddings=1200))


def asked(engine: Engine, *streams: Iterator[EngineEvent]) -> list[list[EngineEvent]]:
    """The events of answers that are made at once."""
    rounds: Rounds[None] = Rounds(engine.batch)
    jobs: list[Job[None]] = [Job(lambda *_: iter(()), JobKind.WORK, object()) for _ in streams]
    for job, stream in zip(jobs, streams, strict=True):
        job.steps = stream
        rounds.add(job)
    heard: list[list[EngineEvent]] = [[] for _ in streams]
    while rounds.owners:
        rounds.go()
        for job, events in zip(jobs, heard, strict=True):
            while not job.events.empty():
                kind, value = job.events.get()
                assert kind != "error", value
                if kind == "event":
                    events.append(value)
    return heard


def ids_in(events: list[EngineEvent]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


def held(engine: Engine, state: KVState) -> list[torch.Tensor]:
    return [plane[:, : len(state.tokens)].clone() for plane in state.planes]


@pytest.mark.parametrize("draft", [0, 3])
@pytest.mark.parametrize("way", WAYS)
def test_answers_made_at_once_equal_each_alone_with_all_their_kv(
    loaded: LoadedModel, way: str, draft: int
) -> None:
    requests = [Request(prompt, WAYS[way], max_tokens=12) for prompt in [*PROMPTS, REPEATED]]
    alone = []
    for request in requests:
        engine = Engine(loaded, draft=draft)
        live = engine.new_sequence()
        ids = ids_in(list(engine.generate(live, request, NEVER)))
        alone.append((ids, held(engine, live.state)))
    engine = Engine(loaded, draft=draft)
    engine.batch = Batch(
        loaded, slice_s=0.0 if draft else SLICE_S
    )  # also between any two layers of the others
    sequences = [engine.new_sequence() for _ in requests]
    pairs = zip(sequences, requests, strict=True)
    heard = asked(engine, *(engine.generate(one, request, NEVER) for one, request in pairs))
    for live, request, events, (ids, planes) in zip(sequences, requests, heard, alone, strict=True):
        assert ids_in(events) == ids
        assert live.state.tokens == engine.told([*request.prompt, *said(loaded, ids)])
        assert all(torch.equal(*pair) for pair in zip(held(engine, live.state), planes, strict=True))


def forwards_of(loaded: LoadedModel) -> tuple[LoadedModel, list[int]]:
    """The model, and how many conversations each of its forwards over several computed."""
    counts: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            if name == "together":
                return self._together
            return getattr(loaded.network, name)

        def _together(self, parts: Any) -> Any:
            counts.append(len(parts))
            assert loaded.network.together is not None
            return loaded.network.together(parts)

    return replace(loaded, network=Counting()), counts


def test_the_tokens_of_all_answers_are_computed_in_one_forward_each_step(plain: LoadedModel) -> None:
    loaded, counts = forwards_of(plain)
    engine = Engine(loaded)
    requests = [Request(prompt, max_tokens=30) for prompt in PROMPTS]
    asked(engine, *(engine.generate(engine.new_sequence(), request, NEVER) for request in requests))
    assert counts.count(4) >= 20
    assert set(counts) <= {2, 3, 4}


def test_more_rows_than_one_forward_takes_are_shared_out(plain: LoadedModel) -> None:
    loaded, counts = forwards_of(plain)
    engine = Engine(loaded, draft=11)
    requests = [Request([*REPEATED, number + 20, *REPEATED], max_tokens=20) for number in range(4)]
    asked(engine, *(engine.generate(engine.new_sequence(), request, NEVER) for request in requests))
    assert max(counts) == 4, "guesses leave room for the others"
    engine.batch.admit(14)
    assert engine.batch.share == 1


def test_an_answer_goes_on_between_the_layers_of_anothers_prefill(plain: LoadedModel) -> None:
    engine = Engine(plain)
    engine.batch = Batch(plain, slice_s=0.0)  # as if each layer took as long as an answer may wait
    order: list[str] = []

    def noted(name: str, stream: Iterator[EngineEvent]) -> Iterator[EngineEvent]:
        for event in stream:
            if isinstance(event, Token | Progress):
                order.append(name + type(event).__name__[0])
            yield event

    answer = engine.generate(engine.new_sequence(), Request(PROMPTS[2], max_tokens=60), NEVER)
    live = engine.new_sequence()
    inside: list[int] = []
    live.on_progress = lambda progress: inside.append(progress.done)
    long = engine.generate(live, Request(random_tokens(1000), max_tokens=1), NEVER)
    asked(engine, noted("a", answer), noted("b", long))
    begun, *_, ended = (at for at, name in enumerate(order) if name == "bP")
    num_layers = plain.network.num_layers
    assert order[begun:ended].count("aT") >= 2 * num_layers > 2
    assert inside[:num_layers] == sorted(inside[:num_layers]), "others' forwards count for nothing in its own"


def test_who_ends_in_the_midst_of_anothers_prefill_is_done_with_that_step(plain: LoadedModel) -> None:
    engine = Engine(plain)
    engine.batch = Batch(plain, slice_s=0.0)
    requests = [Request(PROMPTS[2], max_tokens=2), Request(random_tokens(600), max_tokens=4)]
    first, second = asked(engine, *(engine.generate(engine.new_sequence(), one, NEVER) for one in requests))
    assert len(ids_in(first)) == 2 and len(ids_in(second)) == 4
    alone = Engine(plain)
    assert ids_in(second) == ids_in(list(alone.generate(alone.new_sequence(), requests[1], NEVER)))


def test_what_others_take_in_the_midst_of_a_forward_is_no_time_of_its_own(plain: LoadedModel) -> None:
    batch = Batch(plain, slice_s=0.0)
    batch.let_others_on = lambda: time.sleep(0.05)
    batch.wish(said(plain, [5]), begun(Engine(plain)), NEVER)
    before = time.perf_counter() - batch.clock()
    batch.between_layers()
    assert time.perf_counter() - batch.clock() - before >= 0.05


def test_one_that_is_cancelled_or_over_ends_alone(plain: LoadedModel) -> None:
    engine = Engine(plain)
    sequences = [engine.new_sequence() for _ in range(3)]
    count = [0, 0, 0]

    def stream(number: int, is_cancelled: Callable[[], bool], is_over: Callable[[], bool]) -> Any:
        request = Request(PROMPTS[number], SamplingParams(), max_tokens=20)
        for event in engine.generate(sequences[number], request, is_cancelled, is_over):
            count[number] += isinstance(event, Token)
            yield event

    streams = [
        stream(0, lambda: count[0] >= 5, NEVER),
        stream(1, NEVER, lambda: count[1] >= 7),
        stream(2, NEVER, NEVER),
    ]
    heard = asked(engine, *streams)
    ends = [events[-1] for events in heard]
    assert [end.reason for end in ends if isinstance(end, Finished)] == [
        Finish.CANCELLED,
        Finish.STOP,
        Finish.LENGTH,
    ]
    for live, events, prompt in zip(sequences, heard, PROMPTS, strict=False):
        whole = engine.told([*prompt, *said(plain, ids_in(events))])
        assert live.state.tokens == whole[: len(live.state.tokens)]
        assert len(live.state.tokens) >= len(whole) - 1


def test_one_that_is_let_go_of_while_it_wants_something_leaves_the_others(plain: LoadedModel) -> None:
    engine = Engine(plain)
    engine.batch.admit(2)
    live = engine.new_sequence()
    stream = engine.generate(live, Request(PROMPTS[0], max_tokens=9), NEVER)
    events = []
    while not isinstance(event := next(stream), Wanting):
        events.append(event)
    other = engine.batch.wish(said(plain, [5]), begun(engine), NEVER)
    stream.close()  # type: ignore[attr-defined]
    engine.batch.compute()
    assert other.logits is None, "alone it is computed alone"
    assert live.state.tokens == engine.told(PROMPTS[0])


def begun(engine: Engine) -> KVState:
    state = engine.new_sequence().state
    engine.loaded.forward(PROMPTS[1], state)
    return state


def test_what_fails_together_is_tried_by_each_alone(plain: LoadedModel) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            if name == "together":
                return self._together
            return getattr(plain.network, name)

        def _together(self, parts: Any) -> Any:
            raise MemoryError("no room for all")

    engine = Engine(replace(plain, network=Failing()))
    requests = [Request(prompt, max_tokens=6) for prompt in PROMPTS[:2]]
    heard = asked(engine, *(engine.generate(engine.new_sequence(), one, NEVER) for one in requests))
    alone = Engine(plain)
    for events, request in zip(heard, requests, strict=True):
        assert ids_in(events) == ids_in(list(alone.generate(alone.new_sequence(), request, NEVER)))


def test_times_of_answers_made_together_say_nothing_of_what_a_forward_takes(plain: LoadedModel) -> None:
    engine = Engine(plain)
    requests = [Request(prompt, max_tokens=10) for prompt in PROMPTS]
    heard = asked(engine, *(engine.generate(engine.new_sequence(), one, NEVER) for one in requests))
    assert engine.pace.step_s == 0.0
    ends = [events[-1] for events in heard]
    assert all(isinstance(end, Finished) and end.decode_s > 0 for end in ends)


def test_a_model_that_is_no_such_one_has_no_room_for_two(plain: LoadedModel, tmp_path: Path) -> None:
    assert Engine(replace(plain, is_exact=False)).batch.most == 1
    assert Engine(plain).batch.most == plain.network.generated_at_once


def test_a_long_prompt_is_stored_bit_by_bit_while_others_answer(plain: LoadedModel) -> None:
    engine = Engine(plain, chunk_tokens=128)
    live = engine.new_sequence()
    assert engine.kv_layout is not None
    engine.cache = PrefixCache(engine.kv_layout, b"m" * 16, CacheSettings(ram_bytes=2**26))
    stored: list[int] = []
    long = random_tokens(plain.context - 20)
    other = engine.generate(engine.new_sequence(), Request(PROMPTS[0], max_tokens=60), NEVER)

    def watched() -> Iterator[EngineEvent]:
        for event in engine.generate(live, Request(long, max_tokens=1), NEVER):
            assert engine.cache is not None
            if isinstance(event, Progress):
                stored.append(engine.cache.match(long).num_tokens)
            yield event

    asked(engine, other, watched())
    assert stored[0] == 0 and stored[-1] >= 1024
    assert sorted(stored) == stored
