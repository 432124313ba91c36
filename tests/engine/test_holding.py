"""Models with recurrent layers: whatever is kept, restored or cut, the answer is that of a computation from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvchat.cache.base import CacheSettings
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.request import Finish, Finished, Request, Token
from kvchat.models.loaded import LoadedModel
from kvchat.models.reuse import BLOCKS, SNAPSHOTS, STEPS, Continuation, ReusePolicy, ReuseRule
from kvchat.models.schedule import Schedule
from tests.engine.talk import Talk
from tests.engine.test_engine import Breaks
from tests.tiny import random_tokens, said, tiny_model

MAMBA = {
    "mamba_n_heads": 12,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
MIXED = ["linear_attention", "full_attention", "linear_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 12, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 16},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 96},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "mamba_d_state": 8,
    },
    "qwen3_next": {
        "layer_types": MIXED,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA
    | {
        "layer_types": MIXED,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
    },
}
EVERY = pytest.mark.parametrize("family", FAMILIES)
SOME = pytest.mark.parametrize("family", ["mamba", "falcon_h1"])
MODELS: dict[str, LoadedModel] = {}


def model_of(family: str) -> LoadedModel:
    if family not in MODELS:
        MODELS[family] = tiny_model(family, **FAMILIES[family])
    return MODELS[family]


def engine_of(family: str, folder: Path | None = None, **changed: Any) -> Talk:
    """An engine as after a start; going on always seems faster to it than computing anew."""
    engine = Talk(model_of(family), chunk_tokens=16)
    engine.warm_up()
    engine.pace.measure = lambda num_tokens, seconds: None  # type: ignore[method-assign]
    engine.pace.prefill_s_per_token = engine.pace.step_s = 1.0
    layout = engine.kv_layout
    assert layout is not None
    fields = {"ram_bytes": 2**22, "disk_bytes": 2**24, "disk_root": folder, "block_size": 8} | changed
    engine.cache = PrefixCache(layout, b"model", CacheSettings(**fields))
    return engine


def say(engine: Talk, prompt: list[int], count: int = 6, **options: Any) -> tuple[list[int], Finished]:
    """Answer and keep, as after a turn."""
    is_cancelled: Callable[[], bool] = options.pop("is_cancelled", lambda: False)
    events = list(engine.generate(Request(prompt, max_tokens=count, **options), is_cancelled))
    engine.store()
    assert isinstance(events[-1], Finished)
    return said(engine.loaded, [event.id for event in events if isinstance(event, Token)]), events[-1]


def from_scratch(engine: Talk, prompt: list[int], count: int = 6) -> list[int]:
    """What the model says when every token's logits are computed in one go, with nothing kept."""
    loaded = replace(engine.loaded, rule=ReuseRule(ReusePolicy.NONE, Continuation.RESTART), is_exact=False)
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(loaded.forward(tokens, loaded.new_state()).argmax()))
    return said(engine.loaded, tokens[len(prompt) :])


def is_held_right(engine: Talk) -> bool:
    """Whether the next token's logits from the live state are those of a computation from scratch."""
    loaded = replace(engine.loaded, rule=ReuseRule(ReusePolicy.NONE, Continuation.RESTART), is_exact=False)
    tokens = [*engine.state.tokens, 7]
    expected = loaded.forward(tokens, loaded.new_state())
    return bool((engine.loaded.forward([7], engine.state) - expected).abs().max() < 1e-4)


@EVERY
def test_turns_a_retry_a_branch_and_a_return_are_right_and_reuse_what_is_held(family: str) -> None:
    engine = engine_of(family)
    prompt = random_tokens(37)
    said, _ = say(engine, prompt, shared=20)
    assert said == from_scratch(engine, prompt)
    again, retried = say(engine, prompt)
    assert (again, retried.prefilled, retried.reuse.tiers["ram"]) == (said, 1, 36)
    follow_up = prompt + said + random_tokens(7, seed=1)
    replied, finished = say(engine, follow_up)
    assert replied == from_scratch(engine, follow_up)
    assert finished.reuse.live == len(prompt + said)
    branch = prompt + said + random_tokens(9, seed=2)
    branched, finished = say(engine, branch)
    assert branched == from_scratch(engine, branch)
    assert finished.prefilled == 9, "the branch begins at the end of the first turn"
    other = prompt[:20] + random_tokens(11, seed=3)
    first, finished = say(engine, other)
    assert first == from_scratch(engine, other)
    if engine.loaded.rule.continuation is Continuation.CHUNK:
        assert finished.reuse.tiers["ram"] == 20, "the system prompt has a snapshot of its own"
    assert is_held_right(engine)


@EVERY
def test_after_a_restart_the_disk_serves(family: str, tmp_path: Path) -> None:
    engine = engine_of(family, tmp_path)
    prompt = random_tokens(45)
    said, _ = say(engine, prompt)
    engine.close()
    engine = engine_of(family, tmp_path)
    follow_up = prompt + said + random_tokens(5, seed=1)
    replied, finished = say(engine, follow_up)
    assert replied == from_scratch(engine, follow_up)
    assert (finished.prefilled, finished.reuse.tiers["disk"]) == (5, len(prompt + said))
    again, finished = say(engine, prompt)
    assert (again, finished.prefilled) == (said, 1)


@EVERY
def test_one_altered_token_in_what_is_held_changes_the_logits(family: str) -> None:
    engine = engine_of(family)
    prompt = random_tokens(40)
    altered = [*prompt[:38], prompt[38] - 1, prompt[39]]
    say(engine, altered, count=1)
    engine.state.tokens[38] = prompt[38]
    assert not is_held_right(engine)


@SOME
def test_a_cancelled_prefill_and_a_cancelled_answer_leave_what_is_right(family: str) -> None:
    prompt = random_tokens(60)
    for steps in range(1, 7):
        engine = engine_of(family)
        left = iter([False] * steps)
        said, finished = say(engine, prompt, is_cancelled=lambda left=left: next(left, True))
        assert finished.reason is Finish.CANCELLED
        assert engine.state.tokens == (prompt + said)[: len(engine.state.tokens)]
        assert is_held_right(engine) or not engine.state.tokens
        engine.state.keep(len(prompt + said) - 1)
        assert say(engine, prompt)[0] == from_scratch(engine, prompt)


@pytest.mark.parametrize("after", range(1, 17, 3))
def test_an_exception_anywhere_leaves_what_is_right(after: int) -> None:
    engine = engine_of("falcon_h1")
    prompt = random_tokens(40)
    expected = from_scratch(engine, prompt)
    fault = Breaks(engine, after)
    with pytest.raises(RuntimeError, match="out of luck"):
        say(engine, prompt)
    fault.remove()
    engine.store()
    assert engine.state.tokens == (prompt + expected)[: len(engine.state.tokens)]
    assert say(engine, prompt)[0] == expected
    engine.state.keep(0)
    assert say(engine, prompt)[0] == expected, "nothing wrong was stored"


@SOME
def test_a_long_prefill_leaves_snapshots_on_its_way(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvchat.engine.engine.SNAPSHOT_TOKENS", 32)
    monkeypatch.setattr("kvchat.engine.holding.PENDING_BYTES", 1)
    engine = engine_of(family)
    prompt = random_tokens(100)
    say(engine, prompt, shared=10)
    other = prompt[:70] + random_tokens(9, seed=4)
    said, finished = say(engine, other)
    assert said == from_scratch(engine, other)
    is_chunked = engine.loaded.rule.continuation is Continuation.CHUNK
    assert finished.reuse.num_tokens == (64 if is_chunked else 0)


@SOME
def test_without_a_cache_the_live_snapshots_serve_and_are_bounded(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(family)
    engine.cache = None
    prompt = random_tokens(30)
    said, _ = say(engine, prompt)
    again, finished = say(engine, prompt)
    assert (again, finished.reuse.live) == (said, 29)
    monkeypatch.setattr("kvchat.models.stock.snapshots.TAKEN_BYTES", 1)
    say(engine, prompt + said + random_tokens(5, seed=1))
    assert len(engine.state.taken) == 1


def test_going_on_one_by_one_gives_way_to_computing_everything_in_one_go_where_that_is_faster() -> None:
    engine = engine_of("mamba")
    prompt = random_tokens(30)
    said, _ = say(engine, prompt)
    engine.pace.step_s = 10.0
    follow_up = prompt + said + random_tokens(10, seed=1)
    replied, finished = say(engine, follow_up)
    assert replied == from_scratch(engine, follow_up)
    assert (finished.reuse.num_tokens, finished.reuse.skipped) == (0, len(prompt + said))


def test_forwards_end_where_snapshots_are_taken_and_are_as_long_as_the_model_allows() -> None:
    loaded = replace(model_of("mamba"), page=1)

    def ends(rule: ReuseRule, stops: list[int], start: int = 0) -> list[int]:
        found = [start]
        while found[-1] < stops[-1]:
            found.append(Schedule([5] * stops[-1], replace(loaded, rule=rule), 16, stops).end(found[-1]))
        return found[1:]

    assert ends(BLOCKS, [40]) == [16, 32, 40]
    assert ends(SNAPSHOTS, [20, 39, 40]) == [16, 20, 36, 39, 40]
    assert ends(STEPS, [20, 39, 40]) == [39, 40]
    assert ends(STEPS, [20, 39, 40], start=36) == [37, 38, 39, 40]
    assert ends(STEPS, [1]) == [1]
    assert ends(ReuseRule(ReusePolicy.NONE), [40]) == [40]


def test_a_readable_only_cache_still_restores(tmp_path: Path) -> None:
    engine = engine_of("falcon_h1", tmp_path)
    prompt = random_tokens(30)
    said, _ = say(engine, prompt)
    engine.close()
    engine = engine_of("falcon_h1", tmp_path, mode="ro")
    again, finished = say(engine, prompt)
    assert (again, finished.reuse.tiers["disk"]) == (said, 29)
    assert engine.state.taken, "what could not be stored is kept"


@SOME
def test_flipped_bytes_on_disk_cost_time_and_nothing_else(family: str, tmp_path: Path) -> None:
    engine = engine_of(family, tmp_path)
    prompt = random_tokens(30)
    said, _ = say(engine, prompt)
    engine.close()
    for path in tmp_path.glob("*/*.state"):
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
    engine = engine_of(family, tmp_path)
    again, finished = say(engine, prompt)
    assert (again, finished.prefilled) == (said, 30)
    assert torch.is_inference_mode_enabled() is False
