"""Whether a model does what is declared of it: computed in one go, and in every way in which state is reused. Once a model."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from kvchat.cache.match import CacheSettings
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.models.kv_state import KVState, kv_layout
from kvchat.models.loaded import LoadedModel
from kvchat.models.reuse import Continuation, ReusePolicy, ReuseRule

BUDGET_S = 2.0
"""What all of a probe may take."""
LENGTHS = (44, 20)
"""Tokens of a probe, the shorter where the longer takes too long."""
NUM_FORWARDS = 9
"""About so many forwards over all tokens make a probe."""
BLOCK_TOKENS = 4
NOISE_TIMES = 8.0
"""What another way may differ, as a multiple of what another length of the same computation does."""
BOUNDS = {torch.float32: (1e-3, 1e-2), torch.float64: (1e-3, 1e-2)}
"""By dtype: what is right whatever the noise, and what is wrong whatever the noise, as shares of the logits' deviation."""
COARSE_BOUNDS = (0.05, 0.25)
_VERSION = 1
_MEMORY_NAME = "verdicts.json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds for a model: `rule`, against the one `declared`.

    `difference` is the largest that was seen under the rule, as a share of the logits' deviation, and `bound` what is
    noise. `is_checked` is False where the model is too slow for a probe.
    """

    rule: ReuseRule
    declared: ReuseRule
    difference: float = 0.0
    bound: float = 0.0
    is_checked: bool = True

    @property
    def is_as_declared(self) -> bool:
        """Whether the model does what the table says."""
        return self.rule == self.declared

    def __str__(self) -> str:
        if not self.is_checked:
            return "not checked, for that would take too long"
        if self.is_as_declared:
            return f"checked: {self.difference:.0e} off, where up to {self.bound:.0e} is rounding"
        return f"{describe_rule(self.declared)} gives wrong answers, so it gets {describe_rule(self.rule)}"


def describe_rule(rule: ReuseRule) -> str:
    """A rule in a few words."""
    ways = {
        Continuation.CHUNK: "",
        Continuation.ONE_TOKEN: ", one token at a time",
        Continuation.RESTART: ", from the start for each token",
    }
    return f"{rule.policy.value}{ways[rule.continuation]}"


def checked(loaded: LoadedModel, mark: bytes, memory: Path) -> Verdict:
    """The verdict on a model, from the folder `memory` where it was given before under the fingerprint `mark`."""
    key = xxhash.xxh3_128_hexdigest(mark + json.dumps([_VERSION, asdict(loaded.rule)]).encode())
    known = _read(memory / _MEMORY_NAME)
    with suppress(KeyError, TypeError, ValueError):
        return _from_json(known[key], loaded.rule)
    verdict = probe(loaded)
    _write(memory / _MEMORY_NAME, known | {key: _to_json(verdict)})
    return verdict


def probe(loaded: LoadedModel, *, budget_s: float = BUDGET_S) -> Verdict:
    """Compute the same few tokens in one go and in all the ways that the model's rule allows, within `budget_s`.

    Where these differ by more than noise, the next weaker rule is tried; computing everything anew is always right.
    """
    declared = loaded.rule
    for length in LENGTHS:
        started = time.perf_counter()
        measure = Probe(replace(loaded, context=length + 2 * BLOCK_TOKENS), length)
        if (time.perf_counter() - started) / 2 * NUM_FORWARDS < budget_s:
            break
    else:
        return Verdict(declared, declared, is_checked=False)
    for rule in (declared, *declared.weaker()):
        difference = measure.difference(rule)
        if difference <= measure.bound:
            return Verdict(rule, declared, difference, measure.bound)
    raise AssertionError("the last rule is always right")


class Probe:
    """A few tokens and what the model says behind them; what is far from it is wrong."""

    def __init__(self, loaded: LoadedModel, length: int) -> None:
        self.loaded = loaded
        draw = random.Random(0)
        self.tokens = [draw.randrange(loaded.vocab_size) for _ in range(length + 3)]
        plain = replace(loaded, rule=ReuseRule(ReusePolicy.NONE, Continuation.RESTART))
        longer = plain.logits(self.tokens, plain.new_state(), 4)[0]
        del self.tokens[length:]
        self.expected = plain.forward(self.tokens, plain.new_state())
        right, wrong = BOUNDS.get(loaded.dtype, COARSE_BOUNDS)
        self.bound = min(max(right, NOISE_TIMES * self.distance(longer)), wrong)

    def distance(self, logits: torch.Tensor) -> float:
        """How far logits, [vocab], lie from the expected ones: root of the mean square, over these' deviation."""
        error = (logits - self.expected).square().mean().sqrt() / self.expected.std()
        return float(error.nan_to_num(torch.inf, torch.inf))

    def difference(self, rule: ReuseRule) -> float:
        """The largest distance that comes up when the tokens are computed as `rule` allows; infinite when that fails."""
        if rule.continuation is Continuation.RESTART:
            return 0.0
        try:
            return max(self._distances(replace(self.loaded, rule=rule)))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a model's own code may raise anything
            return torch.inf

    def _distances(self, loaded: LoadedModel) -> Sequence[float]:
        """Continued, cut back, and restored from a cache."""
        tokens, state = self.tokens, loaded.new_state()
        middle = len(tokens) // 2 - 1
        self._feed(loaded, state, middle)
        if loaded.rule.policy is ReusePolicy.NONE:
            return [self._finished(loaded, state)]
        state.take()
        self._feed(loaded, state, middle + 3)
        found = [self._finished(loaded, state)]
        state.keep(middle + 1)
        found.append(self._finished(loaded, state))
        return [*found, self._finished(loaded, self._restored(loaded, state))]

    def _finished(self, loaded: LoadedModel, state: KVState) -> float:
        return self.distance(self._feed(loaded, state, len(self.tokens)))

    def _feed(self, loaded: LoadedModel, state: KVState, end: int) -> torch.Tensor:
        """Go on up to token `end`, in one forward or token by token as the model allows."""
        start = len(state.tokens)
        if start and loaded.rule.continuation is Continuation.ONE_TOKEN:
            for token in self.tokens[start : end - 1]:
                loaded.forward([token], state)
            start = end - 1
        return loaded.forward(self.tokens[start:end], state)

    def _restored(self, loaded: LoadedModel, state: KVState) -> KVState:
        """A new state with what a cache gave back of this one."""
        layout = kv_layout(state)
        if layout is None:
            return loaded.new_state()
        size = layout.bytes_per_token * (len(self.tokens) + BLOCK_TOKENS) + layout.state_bytes + 2**20
        cache = PrefixCache(layout, b"probe", CacheSettings(ram_bytes=2 * size, block_size=BLOCK_TOKENS))
        fresh = loaded.new_state()
        loaded.forward(self.tokens[:1], fresh)  # lets it allocate its buffers
        fresh.keep(0)
        with torch.inference_mode():
            cache.commit(self.tokens, state.planes, len(self.tokens))
            for at, states in state.taken.items():
                cache.commit_snapshot(self.tokens[:at], state.planes, states)
            match = cache.match(self.tokens[:-1])
            with cache.lease(match) as lease:
                loaded_up = cache.load(lease, fresh.planes, 0, match.num_tokens, states=fresh.states)
        assert loaded_up.end == match.num_tokens > 0, "what was just stored is there"
        fresh.advance(self.tokens[: loaded_up.end])
        return fresh


def _to_json(verdict: Verdict) -> dict[str, Any]:
    rule = {"policy": verdict.rule.policy.value, "continuation": verdict.rule.continuation.value}
    found = {"difference": verdict.difference, "bound": verdict.bound, "is_checked": verdict.is_checked}
    return {**rule, **found}


def _from_json(value: Any, declared: ReuseRule) -> Verdict:
    policy, continuation = ReusePolicy(value["policy"]), Continuation(value["continuation"])
    rule = replace(declared, policy=policy, continuation=continuation)
    return Verdict(rule, declared, value["difference"], value["bound"], bool(value["is_checked"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    """Only a memory: what can't be written is found out again the next time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        temporary.replace(path)
