"""Layers that look at a window hold little more than that, and whatever is cut back or loaded, the answer is right."""

from __future__ import annotations

import mmap
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from kvchat.cache.base import CacheSettings, Ended
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.models.stock.arena import Arena
from tests.engine.talk import Talk
from tests.engine.test_engine import run
from tests.engine.test_holding import from_scratch, is_held_right
from tests.tiny import random_tokens, tiny_model

WINDOW = 16
MARGIN = 24
MODELS: dict[str, Any] = {
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": WINDOW},
}
LOADED = {name: tiny_model(name, **overrides) for name, overrides in MODELS.items()}
FAMILIES = pytest.mark.parametrize("family", MODELS)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvchat.models.stock.arena.MARGIN_TOKENS", MARGIN)
    monkeypatch.setattr("kvchat.engine.holding.EXCESS_TOKENS", 16)


def engine_of(family: str, folder: Path | None = None, **changed: Any) -> Talk:
    engine = Talk(LOADED[family], chunk_tokens=16)
    engine.warm_up()
    engine.pace.measure = lambda num_tokens, seconds: None  # type: ignore[method-assign]
    engine.pace.prefill_s_per_token = 1.0
    assert engine.kv_layout is not None
    fields = {"ram_bytes": 2**22, "disk_bytes": 2**24, "disk_root": folder, "block_size": 8} | changed
    engine.cache = PrefixCache(engine.kv_layout, b"model", CacheSettings(**fields))
    return engine


def say(engine: Talk, prompt: list[int], **options: Any) -> tuple[list[int], Any]:
    generated, finished = run(engine, prompt, 6, **options)
    engine.store()
    assert finished.prefilled + finished.reuse.num_tokens == len(prompt)
    return generated, finished


def spoil(engine: Talk) -> None:
    """Make sure that nothing is read of what is not held any more."""
    assert isinstance(engine.state, Arena)
    for layer in engine.state.layers:
        if layer.window is not None:
            with torch.inference_mode():
                for plane in layer.planes:
                    plane[:, : engine.state.first_held] = torch.nan


@FAMILIES
def test_turns_undo_and_forks_past_the_window_are_right_and_load_no_more_than_they_need(family: str) -> None:
    engine = engine_of(family)
    prompt = random_tokens(150)
    said, _ = say(engine, prompt, shared=30)
    spoil(engine)
    assert engine.state.first_held == len(prompt) + 6 - WINDOW - MARGIN
    follow_up = prompt + said + random_tokens(9, seed=1)
    replied, finished = say(engine, follow_up)
    spoil(engine)
    assert (replied, finished.prefilled) == (from_scratch(engine, follow_up), 9)
    again, finished = say(engine, follow_up)
    assert (again, finished.prefilled) == (replied, 1), "within the margin nothing is loaded"
    assert finished.reuse.tiers.get("ram", 0) == 0
    for length in (120, 90, 41, 17, 5):
        spoil(engine)
        fork = prompt[:length] + random_tokens(11, seed=length)
        forked, finished = say(engine, fork)
        assert forked == from_scratch(engine, fork)
        assert finished.prefilled <= 11 + 8
        assert finished.reuse.tiers.get("ram", 0) <= WINDOW + 8 + 8 if length > 2 * WINDOW else True
        assert is_held_right(engine)
        say(engine, follow_up)


@FAMILIES
def test_a_conversation_is_resumed_from_disk_past_the_window(family: str, tmp_path: Path) -> None:
    engine = engine_of(family, tmp_path)
    prompt = random_tokens(150)
    said, _ = say(engine, prompt)
    engine.close()
    engine = engine_of(family, tmp_path)
    follow_up = prompt + said + random_tokens(9, seed=1)
    replied, finished = say(engine, follow_up)
    assert replied == from_scratch(engine, follow_up)
    assert finished.reuse.tiers.get("disk", 0) == 152
    spoil(engine)
    fork = prompt[:80] + random_tokens(5, seed=2)
    forked, finished = say(engine, fork)
    assert forked == from_scratch(engine, fork)
    assert finished.prefilled == 5


@FAMILIES
def test_without_a_cache_what_is_older_is_computed_again(family: str) -> None:
    engine = engine_of(family)
    engine.cache = None
    prompt = random_tokens(150)
    say(engine, prompt)
    spoil(engine)
    fork = prompt[:60] + random_tokens(5, seed=2)
    forked, finished = say(engine, fork)
    assert forked == from_scratch(engine, fork)
    assert finished.prefilled == 65
    again, finished = say(engine, fork)
    assert (again, finished.prefilled) == (forked, 1)


@FAMILIES
@pytest.mark.parametrize(
    "changed", [{"ram_bytes": 0}, {"ram_bytes": 60_000}, {"disk_bytes": 0}, {"mode": "ro"}]
)
@pytest.mark.parametrize("seed", range(3))
def test_any_walk_through_a_conversation_is_right(
    family: str, changed: dict[str, Any], seed: int, tmp_path: Path
) -> None:
    engine = engine_of(family, tmp_path, **changed)
    draw = random.Random(seed)
    talk = random_tokens(100, seed=seed)
    for step in range(12):
        kept = talk[: draw.choice([len(talk), len(talk) - 1, draw.randrange(1, len(talk))])]
        prompt = kept + random_tokens(draw.randrange(1, 70), seed=step)
        prompt = prompt[:400]
        said, _ = run(engine, prompt, 2)
        assert said == from_scratch(engine, prompt, 2)
        if draw.random() < 0.7:
            engine.store()
            spoil(engine)
        assert engine.cache
        engine.cache.check_integrity()
        talk = prompt + said


@FAMILIES
def test_a_corrupt_file_leaves_no_window_half_loaded(family: str, tmp_path: Path) -> None:
    engine = engine_of(family, tmp_path)
    prompt = random_tokens(150)
    say(engine, prompt)
    spoil(engine)
    assert engine.cache and engine.cache.drain(10)
    engine.cache.clear_ram()
    for path in tmp_path.glob("*/*.kv"):
        content = bytearray(path.read_bytes())
        for offset in range(len(content) // 2, len(content), 500):
            content[offset] ^= 1
        path.write_bytes(content)
    fork = prompt[:100] + random_tokens(5, seed=2)
    forked, finished = say(engine, fork)
    assert forked == from_scratch(engine, fork)
    assert finished.reuse.ended is Ended.CORRUPT


def test_the_pages_of_what_is_older_are_given_back() -> None:
    loaded = tiny_model("mistral", sliding_window=WINDOW, max_position_embeddings=8192, head_dim=64)
    state = loaded.new_state()
    for start in range(0, 4096, 256):
        loaded.forward(random_tokens(256, seed=start), state)
    assert state.excess == 4096 - WINDOW - MARGIN
    before = [plane.clone() for plane in state.planes]
    state.release()
    assert (state.excess, state.first_held) == (0, 4096 - WINDOW - MARGIN)
    pages = mmap.PAGESIZE // (64 * 4)
    for plane, old in zip(state.planes, before, strict=True):
        assert torch.equal(plane[:, state.first_held : 4096], old[:, state.first_held : 4096])
        assert not plane[:, pages : state.first_held - pages].any(), (
            "a page that was given back reads as zeros"
        )
    with torch.inference_mode():
        state.shrink()
    for plane, old in zip(state.planes, before, strict=True):
        assert torch.equal(plane[:, state.first_held : 4096], old[:, state.first_held : 4096])


@FAMILIES
@pytest.mark.parametrize("disk_bytes", [0, 2**24])
def test_what_is_held_no_more_is_not_stored_as_if_it_were(
    family: str, disk_bytes: int, tmp_path: Path
) -> None:
    engine = engine_of(family, tmp_path, disk_bytes=disk_bytes)
    prompt = random_tokens(150)
    said, _ = say(engine, prompt)
    spoil(engine)
    assert engine.cache and engine.cache.drain(10)
    engine.cache.clear_ram()
    for path in tmp_path.glob("*/*.kv"):
        path.unlink()
    say(engine, prompt + said + random_tokens(9, seed=1))
    assert engine.cache.match(prompt).num_tokens == 0
    fork = prompt[:60] + random_tokens(5, seed=2)
    assert say(engine, fork)[0] == from_scratch(engine, fork)
    assert engine.cache.match(fork).num_tokens == 64, "what was computed anew is stored again"
