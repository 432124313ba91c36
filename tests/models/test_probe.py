from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvchat.models.kv_state import KVState
from kvchat.models.loaded import LoadedModel
from kvchat.models.probe import Probe, checked, probe
from kvchat.models.reuse import BLOCKS, RESTART, SNAPSHOTS, STEPS, Continuation, ReusePolicy, ReuseRule
from tests.tiny import tiny_model


def at_once() -> Callable[[int], float]:
    """What a forward takes."""
    return lambda num_tokens: 0.0


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mamba": {"state_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_does_what_is_declared_keeps_its_rule(family: str, dtype: torch.dtype) -> None:
    loaded = tiny_model(family, **FAMILIES[family])
    loaded.model.to(dtype)
    verdict = probe(replace(loaded, dtype=dtype))
    assert verdict.is_as_declared and verdict.is_checked
    assert 0 < verdict.bound < 0.3
    assert "checked" in str(verdict)


def test_a_model_that_a_chunk_would_make_wrong_is_gone_on_with_one_token_at_a_time() -> None:
    loaded = replace(tiny_model("mamba", state_size=8), rule=SNAPSHOTS)
    verdict = probe(loaded)
    assert verdict.rule.continuation is Continuation.ONE_TOKEN
    assert verdict.rule.policy is ReusePolicy.SNAPSHOTS
    assert "one token at a time" in str(verdict)


@dataclass(frozen=True, slots=True)
class Odd(LoadedModel):
    """A model whose logits say how its tokens came in."""

    fault: str = ""

    def logits(self, tokens: Sequence[int], state: KVState, num_logits: int) -> torch.Tensor:
        before = len(state.tokens)
        logits = LoadedModel.logits(self, tokens, state, num_logits)
        is_wrong = {
            "continued": before > 0 and self.rule.continuation is not Continuation.RESTART,
            "kept": before > 0 and self.rule.policy is not ReusePolicy.NONE,
            "raises": False,
            "nan": False,
        }[self.fault]
        if self.fault == "raises" and self.rule.policy is not ReusePolicy.NONE and before:
            raise ValueError("not like this")
        if self.fault == "nan" and self.rule.policy is not ReusePolicy.NONE and before:
            return torch.full_like(logits, torch.nan)
        return logits.roll(1, -1) if is_wrong else logits


def odd_model(fault: str) -> Odd:
    loaded = tiny_model()
    values = {name: getattr(loaded, name) for name in LoadedModel.__dataclass_fields__}
    return Odd(**values, fault=fault)


@pytest.mark.parametrize(
    ("fault", "policy", "continuation"),
    [
        ("kept", ReusePolicy.NONE, Continuation.ONE_TOKEN),
        ("raises", ReusePolicy.NONE, Continuation.ONE_TOKEN),
        ("nan", ReusePolicy.NONE, Continuation.ONE_TOKEN),
        ("continued", ReusePolicy.NONE, Continuation.RESTART),
    ],
)
def test_a_model_that_is_wrong_in_the_declared_way_falls_back_to_one_that_is_right(
    fault: str, policy: ReusePolicy, continuation: Continuation
) -> None:
    verdict = probe(odd_model(fault))
    assert (verdict.rule.policy, verdict.rule.continuation) == (policy, continuation)
    assert not verdict.is_as_declared
    assert "wrong" in str(verdict)


def test_too_slow_a_model_is_taken_as_declared_and_says_so() -> None:
    verdict = probe(tiny_model(), lambda num_tokens: 1.0)
    assert verdict.rule == BLOCKS
    assert not verdict.is_checked
    assert "not checked" in str(verdict)


def test_the_probe_runs_once_a_model_and_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = replace(tiny_model("mamba", state_size=8), rule=SNAPSHOTS)
    first = checked(loaded, b"mark", tmp_path / "models", at_once)
    monkeypatch.setattr("kvchat.models.probe.probe", lambda loaded, forward_s: pytest.fail("it ran again"))
    assert checked(loaded, b"mark", tmp_path / "models", at_once) == first
    assert first.rule.continuation is Continuation.ONE_TOKEN
    with pytest.raises(BaseException, match="ran again"):
        checked(loaded, b"other", tmp_path / "models", at_once)
    with pytest.raises(BaseException, match="ran again"):
        checked(replace(loaded, rule=STEPS), b"mark", tmp_path / "models", at_once)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"KEY": {}}', '{"KEY": {"policy": "all"}}', '{"KEY": 3}']
)
def test_a_spoilt_memory_costs_another_probe_alone(content: str, tmp_path: Path) -> None:
    loaded = tiny_model()
    checked(loaded, b"mark", tmp_path, at_once)
    path = tmp_path / "verdicts.json"
    (key,) = json.loads(path.read_text())
    path.write_text(content.replace("KEY", key))
    assert checked(loaded, b"mark", tmp_path, at_once).is_as_declared
    assert key in json.loads(path.read_text())


def test_a_folder_that_can_not_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert checked(tiny_model(), b"mark", tmp_path / "file" / "below", at_once).is_as_declared


def test_the_weakest_rule_is_never_doubted() -> None:
    assert Probe(tiny_model(), 20).difference(RESTART) == (0.0, 0.0)
    assert probe(replace(tiny_model(), rule=RESTART)).rule == RESTART
    assert probe(replace(tiny_model(), rule=ReuseRule(ReusePolicy.NONE))).is_as_declared


def test_a_machine_that_is_only_busy_is_asked_again_the_next_time(tmp_path: Path) -> None:
    loaded = tiny_model()
    assert not checked(loaded, b"mark", tmp_path, lambda: lambda num_tokens: 1.0).is_checked
    assert checked(loaded, b"mark", tmp_path, at_once).is_checked


def test_a_slower_model_gets_a_shorter_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    plain = Probe.__init__

    def noted(self: Probe, loaded: LoadedModel, length: int) -> None:
        lengths.append(length)
        plain(self, loaded, length)

    monkeypatch.setattr(Probe, "__init__", noted)
    for per_token in (0.0, 0.005):
        assert probe(tiny_model(), lambda num_tokens, each=per_token: each * num_tokens).is_checked
    assert lengths == [44, 20]


def test_in_bfloat16_one_wrong_token_in_the_past_is_more_than_rounding() -> None:
    loaded = tiny_model()
    measure = Probe(replace(coarse(loaded), context=60), 44)
    right, bound = measure.difference(BLOCKS)
    assert right < bound / 2
    measure.tokens[20] += 1
    wrong, _ = measure.difference(BLOCKS)
    assert wrong > bound


def coarse(loaded: LoadedModel) -> LoadedModel:
    """The same model in bfloat16."""
    loaded.model.to(torch.bfloat16)
    return replace(loaded, dtype=torch.bfloat16)
