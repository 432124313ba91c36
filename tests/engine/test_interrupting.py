from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvchat.config import load_config
from kvchat.engine.engine import CHUNK_TOKENS, Engine
from kvchat.engine.pace import Pace
from kvchat.engine.request import Finish, Finished, Progress, Request, Token, Wanting
from kvchat.engine.stride import CHUNK_S, MIN_CHUNK_TOKENS, MIN_DEAF_TOKENS
from kvchat.models.lean.network import LeanNetwork
from kvchat.models.loaded import LoadedModel
from kvchat.models.loader import load_model
from tests.engine.talk import Talk
from tests.engine.test_holding import FAMILIES
from tests.tiny import random_tokens, said, tiny_folder, tiny_model

PROMPT = random_tokens(70)
NUM_LAYERS = 3


def lean(folder: Path) -> LoadedModel:
    settings = load_config({"model.dtype": "float32"}, environ={"KVCHAT_CONFIG": str(folder / "none")}).model
    loaded = load_model(tiny_folder(folder), settings, name="lean")
    assert isinstance(loaded.network, LeanNetwork)
    return loaded


MODELS: dict[str, Callable[[Path], LoadedModel]] = {
    "lean": lean,
    "stock": lambda _: tiny_model(),
    "a window": lambda _: tiny_model("gemma2", sliding_window=16, query_pre_attn_scalar=8),
}


def answer(engine: Talk, is_cancelled: Callable[[], bool] = lambda: False) -> tuple[list[int], Finished]:
    *events, finished = engine.generate(Request(PROMPT, max_tokens=6), is_cancelled)
    assert isinstance(finished, Finished)
    return [event.id for event in events if isinstance(event, Token)], finished


def when(is_so: Callable[[int], bool]) -> tuple[list[bool], Callable[[], bool]]:
    """What was answered, and who is asked before each forward or layer: that number, from 0 on, decides."""
    asked: list[bool] = []

    def is_it() -> bool:
        asked.append(is_so(len(asked)))
        return asked[-1]

    return asked, is_it


def after(num_asked: int) -> tuple[list[bool], Callable[[], bool]]:
    """Cancelled once that was asked so many times."""
    return when(lambda number: number >= num_asked)


@pytest.mark.parametrize("layers", range(NUM_LAYERS + 1))
@pytest.mark.parametrize("name", MODELS)
def test_a_cancel_is_heard_between_layers_and_whole_chunks_stay(
    tmp_path: Path, name: str, layers: int
) -> None:
    loaded = MODELS[name](tmp_path)
    free, _ = answer(Talk(loaded, chunk_tokens=16))
    engine = Talk(loaded, chunk_tokens=16)
    asked, is_cancelled = after(2 * (1 + NUM_LAYERS) + layers)
    none, finished = answer(engine, is_cancelled)
    assert (none, finished.reason) == ([], Finish.CANCELLED)
    assert len(asked) == 2 * (1 + NUM_LAYERS) + layers + 1, (
        "nothing more was computed once it was told to end"
    )
    assert engine.state.tokens == PROMPT[:32]
    again, finished = answer(engine)
    assert (again, finished.reuse.live) == (free, 32)


@pytest.mark.parametrize("name", MODELS)
def test_a_cancel_inside_a_decoding_step_leaves_what_was_said(tmp_path: Path, name: str) -> None:
    loaded = MODELS[name](tmp_path)
    free, _ = answer(Talk(loaded))
    engine = Talk(loaded)
    _, is_cancelled = after(2 * (1 + NUM_LAYERS) + 2)
    heard, finished = answer(engine, is_cancelled)
    assert (heard, finished.reason) == (free[:2], Finish.CANCELLED)
    whole = PROMPT + said(loaded, heard)
    assert engine.state.tokens == whole[: len(engine.state.tokens)]
    assert answer(engine)[0] == free


@pytest.mark.parametrize("layers", range(NUM_LAYERS + 1))
@pytest.mark.parametrize("name", MODELS)
def test_an_answer_that_is_paused_inside_a_decoding_step_goes_on_with_the_same_tokens(
    tmp_path: Path, name: str, layers: int
) -> None:
    loaded = MODELS[name](tmp_path)
    free, _ = answer(Talk(loaded))
    _, is_paused = when(lambda number: number % (NUM_LAYERS + 2) == layers)  # each time before another layer
    engine = Talk(loaded)
    ids: list[int] = []
    num_pauses = 0
    for event in engine.generate(Request(PROMPT, max_tokens=6), lambda: False, lambda: False, is_paused):
        if isinstance(event, Token):
            ids.append(event.id)
        elif isinstance(event, Wanting):
            num_pauses += 1
            whole = PROMPT + said(loaded, ids)
            assert engine.state.tokens == whole[: len(engine.state.tokens)]
    assert (ids, num_pauses > 2) == (free, True)
    assert engine.state.tokens == PROMPT + said(loaded, ids)


@pytest.mark.parametrize("family", ["mamba2", "lfm2"])
def test_where_a_forward_that_ends_takes_along_what_was_held_none_is_ended(family: str) -> None:
    loaded = tiny_model(family, **FAMILIES[family])
    free, _ = answer(Talk(loaded, chunk_tokens=16))
    engine = Talk(loaded, chunk_tokens=16)
    seen: list[int] = []
    for event in engine.generate(Request(PROMPT), lambda: len(seen) > 2):
        if isinstance(event, Progress):
            seen.append(event.done)
    assert engine.state.tokens == PROMPT[: seen[-1]], "whole chunks stay"
    assert answer(engine)[0] == free


def test_how_far_a_long_forward_came_is_told_between_its_layers() -> None:
    engine, told = Talk(tiny_model(), chunk_tokens=64), list[Progress]()
    engine.live.on_progress = told.append
    answer(engine)
    assert [event.done for event in told] == [0, 21, 42, 64, 66, 68]
    assert {event.total for event in told} == {70}


def test_chunks_are_as_long_as_the_pace_allows() -> None:
    pace = Pace()
    assert pace.fitting(CHUNK_S, CHUNK_TOKENS) == CHUNK_TOKENS, "unknown"
    pace.prefill_s_per_token = 0.01
    assert pace.fitting(CHUNK_S, CHUNK_TOKENS) == CHUNK_TOKENS
    pace.prefill_s_per_token = 0.05
    assert pace.fitting(CHUNK_S, CHUNK_TOKENS) == 128
    pace.prefill_s_per_token = 100.0
    assert pace.fitting(CHUNK_S, CHUNK_TOKENS) == 1


@pytest.mark.parametrize(("family", "least"), [("llama", MIN_CHUNK_TOKENS), ("lfm2", MIN_DEAF_TOKENS)])
def test_a_slow_model_computes_short_chunks_and_says_the_same(family: str, least: int) -> None:
    loaded, prompt = tiny_model(family, **FAMILIES.get(family, {})), random_tokens(200)
    ends: list[list[int]] = []
    ids: list[list[int]] = []
    for token_s in (0.0, 10.0):
        engine = Engine(loaded)
        engine.pace.measure = lambda num_tokens, seconds: None  # type: ignore[method-assign]
        engine.pace.prefill_s_per_token = token_s
        events = list(engine.generate(engine.new_sequence(), Request(prompt, max_tokens=5), lambda: False))
        ends.append([event.done for event in events if isinstance(event, Progress)])
        ids.append([event.id for event in events if isinstance(event, Token)])
    assert ids[0] == ids[1]
    assert ends[1][:3] == [0, least, 2 * least]
