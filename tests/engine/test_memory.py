from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kvchat.cache.base import CacheSettings
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.request import Finished, Request, Token
from kvchat.errors import OutOfMemoryError
from kvchat.models.kinds import ids_of
from kvchat.models.stock.network import describe
from tests.engine.talk import Talk
from tests.families.shrink import random_tokens, tiny_random_model
from tests.families.sweep import plain_logits
from tests.tiny import said, tiny_model


class Shortage:
    """Memory that runs out in the middle of the `at`-th forward from now on, and of all `times` that follow."""

    def __init__(self, model: Any, at: int, times: int = 1) -> None:
        self.left = at
        self.times = times
        layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
        self.handle = layers[1].register_forward_hook(self)

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if -self.times < self.left <= 0:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB")


def engine_of(family: str) -> Talk:
    return Talk(describe(tiny_random_model(family), name=family), chunk_tokens=16)


def with_cache(engine: Talk, folder: Path) -> Talk:
    engine.warm_up()
    engine.pace.prefill_s_per_token = engine.pace.step_s = 0.0
    settings = CacheSettings(ram_bytes=2**24, disk_bytes=2**26, disk_root=folder, block_size=8)
    assert engine.kv_layout
    engine.cache = PrefixCache(engine.kv_layout, b"memory", settings)
    return engine


def answer(engine: Talk, prompt: list[int], count: int = 6) -> list[int]:
    events = engine.generate(Request(prompt, max_tokens=count), lambda: False)
    return said(engine.loaded, [event.id for event in events if isinstance(event, Token)])


def from_scratch(engine: Talk, prompt: list[int], count: int = 6) -> list[int]:
    tokens, plain = ids_of(prompt), plain_logits(engine.loaded.model)
    for _ in range(count):
        tokens.append(int(plain(tokens)[-1].argmax()))
    return said(engine.loaded, tokens[len(prompt) :])


FAMILIES = ["llama", "mamba", "mamba2", "jamba", "deepseek_v4"]


@pytest.mark.parametrize("family", FAMILIES)
def test_where_memory_runs_out_once_the_answer_is_the_same(family: str) -> None:
    engine = engine_of(family)
    prompt = random_tokens(40)
    expected = from_scratch(engine, prompt)
    for at in range(1, 6):
        shortage = Shortage(engine.loaded.model, at)
        assert answer(engine, prompt) == expected
        shortage.handle.remove()
        engine.state.keep(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_where_it_is_not_enough_the_remedy_is_said_and_the_conversation_goes_on(family: str) -> None:
    engine = engine_of(family)
    prompt = random_tokens(40)
    expected = from_scratch(engine, prompt)
    for at in range(1, 6):
        shortage = Shortage(engine.loaded.model, at, times=100)
        with pytest.raises(OutOfMemoryError, match="emptying the cache did not help") as caught:
            answer(engine, prompt)
        shortage.handle.remove()
        assert caught.value.exit_code == 5
        assert "--context" in caught.value.remedy
        held = engine.state.tokens
        assert held == (prompt + expected)[: len(held)]
        assert answer(engine, prompt) == expected
        engine.state.keep(0)


def test_the_blocks_in_ram_make_room_and_those_on_disk_stay(tmp_path: Path) -> None:
    engine = with_cache(engine_of("llama"), tmp_path)
    assert engine.cache is not None
    prompt = random_tokens(80)
    expected = from_scratch(engine, prompt)
    answer(engine, prompt)
    engine.store()
    assert engine.cache.usage()[0].used_bytes > 0
    assert engine.cache.drain(10)
    Shortage(engine.loaded.model, 1)
    assert answer(engine, random_tokens(20, seed=1))
    assert engine.cache.usage()[0].used_bytes == 0
    *told, finished = engine.generate(Request(prompt, max_tokens=6), lambda: False)
    assert said(engine.loaded, [event.id for event in told if isinstance(event, Token)]) == expected
    assert isinstance(finished, Finished)
    assert finished.reuse.tiers == {"disk": 64}, "a whole page"


def test_a_state_that_is_brought_in_halfway_does_not_count(tmp_path: Path) -> None:
    engine = with_cache(engine_of("mamba2"), tmp_path)
    prompt = random_tokens(40)
    expected = from_scratch(engine, prompt)
    answer(engine, prompt)
    engine.store()
    assert engine.cache is not None
    answer(engine, random_tokens(20, seed=1))
    load, failures = engine.cache.load, iter([True])

    def half_a_load(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        if next(failures, False):
            raise torch.OutOfMemoryError("out of memory")
        return loaded

    engine.cache.load = half_a_load  # type: ignore[method-assign]
    assert answer(engine, prompt) == expected


def test_an_arena_that_could_not_grow_is_as_large_as_it_was() -> None:
    loaded = tiny_model(max_position_embeddings=16384)
    state: Any = loaded.new_state()
    state.grows, state.allocated = True, 0  # as on a GPU
    tokens = random_tokens(4200)
    loaded.forward(tokens[:4000], state)
    layer = state.layers[1]
    layer.move = lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        loaded.forward(tokens[4000:], state)
    assert (state.allocated, len(state.tokens)) == (4096, 4000)
    del layer.move
    logits = loaded.forward(tokens[4000:], state)
    state.keep(100)
    state.shrink()
    assert state.planes[0].shape[1] == 4096
    assert (loaded.forward(tokens[100:], state) - logits).abs().max() < 1e-4
