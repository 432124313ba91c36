"""Whether a model does what is declared of it: computed in one go, and in every way in which state is reused. Once a model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import xxhash

from kvchat.cache.base import CacheSettings
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.models.kinds import as_generated
from kvchat.models.kv_state import KVState, kv_layout
from kvchat.models.loaded import LoadedModel
from kvchat.models.remembered import recall, remember
from kvchat.models.reuse import Continuation, ReusePolicy, ReuseRule
from kvchat.models.schedule import Schedule
from kvchat.models.weights.mode import WeightsMode

BUDGET_S = 2.0
"""What all of a probe may take."""
LENGTHS = (44, 20)
"""Tokens of a probe, the shorter where the longer takes too long."""
NUM_STEPS = 5
"""Tokens that are computed one by one, where they have to be."""
NUM_FORWARDS = {Continuation.CHUNK: 12, Continuation.ONE_TOKEN: 3 * NUM_STEPS + 8, Continuation.RESTART: 1}
"""About so many forwards make a probe."""
_BITS_FORWARDS = 24
"""About so many more tell whether bits are the same."""
BLOCK_TOKENS = 4
FINE_BOUND = 1e-3
"""What is rounding in float32, as a share of the logits' deviation."""
COARSE_BOUNDS = (0.08, 0.25)
"""Between these lies what is rounding elsewhere."""
INTEGERS_BOUND = 0.15
"""What is rounding at least where a few tokens are multiplied by another kernel than many."""
ALTERED_SHARE = 0.6
"""Rounding is less than this share of what one other token in the past changes."""
ForwardTime = Callable[[int], float]
"""Number of tokens -> about how many seconds one forward over them takes."""
_VERSION = 5
_MEMORY_NAME = "verdicts.json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds for a model: `rule`, against the one `declared`.

    `difference` is the largest that was seen under the rule, as a share of the logits' deviation, and `bound` what of
    it is rounding. `is_checked` is False where the model is too slow for a probe. It `is_exact` if all
    that was computed in different company had the same bits, where that was declared and there was time.
    """

    rule: ReuseRule
    declared: ReuseRule
    difference: float = 0.0
    bound: float = 0.0
    is_checked: bool = True
    is_exact: bool | None = None

    @property
    def is_as_declared(self) -> bool:
        """Whether the model does what the table says."""
        return self.rule == self.declared

    def __str__(self) -> str:
        if not self.is_checked:
            return "not checked, for that would take too long"
        if self.is_exact:
            return "checked: the same to the bit however it is computed"
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


def checked(loaded: LoadedModel, mark: bytes, memory: Path, measured: Callable[[], ForwardTime]) -> Verdict:
    """The verdict on a model, from the folder `memory` where it was given before under the fingerprint `mark`.

    Where it was not, what `measured` finds decides whether there is time for a probe.
    """
    key = xxhash.xxh3_128_hexdigest(mark + json.dumps([_VERSION, asdict(loaded.rule)]).encode())
    known = recall(memory / _MEMORY_NAME)
    with suppress(KeyError, TypeError, ValueError):
        return _from_json(known[key], loaded.rule)
    verdict = probe(loaded, measured())
    if verdict.is_checked:  # a machine that was merely busy is asked again the next time
        remember(memory / _MEMORY_NAME, known | {key: _to_json(verdict)})
    return verdict


def probe(loaded: LoadedModel, forward_s: ForwardTime = lambda num_tokens: 0.0) -> Verdict:
    """Compute the same few tokens in one go and in all the ways that the model's rule allows.

    Where these differ by more than rounding, the next weaker rule is tried; computing everything anew is always right.
    `forward_s` says what a forward over so many tokens takes; where that makes too much, nothing is computed.
    """
    declared = loaded.rule
    num_forwards = NUM_FORWARDS[declared.continuation]
    length = next((length for length in LENGTHS if num_forwards * forward_s(length) < BUDGET_S), None)
    if length is None:
        return Verdict(declared, declared, is_checked=False)
    measure = Probe(replace(loaded, context=length + 2 * BLOCK_TOKENS), length)
    for rule in (declared, *declared.weaker()):
        difference, bound = measure.difference(rule)
        if difference <= bound:
            has_time = _BITS_FORWARDS * forward_s(length) < BUDGET_S
            is_exact = measure.has_same_bits() if loaded.is_exact and rule == declared and has_time else None
            return Verdict(rule, declared, difference, bound, is_exact=is_exact)
    raise AssertionError("the last rule is always right")


class Probe:
    """A few tokens and what the model says behind each of them; what is far from it is wrong."""

    def __init__(self, loaded: LoadedModel, length: int) -> None:
        self.loaded = loaded
        draw = random.Random(0)
        self.tokens = [draw.randrange(loaded.vocab_size) for _ in range(length)]
        self.expected = self._plain(self.tokens)

    def difference(self, rule: ReuseRule) -> tuple[float, float]:
        """The largest distance that comes up when the tokens are computed as `rule` allows, infinite when that fails;
        and what of it is rounding."""
        if rule.continuation is Continuation.RESTART:
            return 0.0, 0.0
        cut = len(self.tokens) - NUM_STEPS
        if rule.policy is not ReusePolicy.NONE and rule.continuation is Continuation.CHUNK:
            cut = len(self.tokens) // 2 - 1
        try:
            return max(self._distances(replace(self.loaded, rule=rule), cut)), self._bound(cut)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a model's own code may raise anything
            return torch.inf, 0.0

    def has_same_bits(self) -> bool:
        """Whether the last logits and all KV are the same however the tokens, given and generated ones, are split, and
        the KV of the first of them whatever follows."""
        half = len(self.tokens) // 2
        tokens = [*self.tokens[:half], *as_generated(self.tokens[half : half + 9]), *self.tokens[half + 9 :]]
        first, *others = (self._computed(tokens, chunk_tokens) for chunk_tokens in (len(tokens), 11, 5))
        shared = half // 2
        company = self._computed([*tokens[:shared], *tokens[:half]], len(tokens))
        return all(
            torch.equal(one, other) for each in others for one, other in zip(first, each, strict=True)
        ) and all(
            torch.equal(one[:, :shared], other[:, :shared])
            for one, other in zip(first[1:], company[1:], strict=True)
        )

    def _computed(self, tokens: list[int], chunk_tokens: int) -> list[torch.Tensor]:
        """The last logits, and all KV."""
        state, schedule, logits = self.loaded.new_state(), Schedule(tokens, self.loaded, chunk_tokens), []
        while (start := len(state.tokens)) < len(tokens):
            logits = [self.loaded.forward(tokens[start : schedule.end(start)], state)]
        return logits + [plane[:, : len(tokens)].clone() for plane in state.planes]

    def _plain(self, tokens: list[int]) -> torch.Tensor:
        """The logits behind each of some tokens, [tokens, vocab], computed in one go and with nothing kept."""
        rule = ReuseRule(ReusePolicy.NONE, Continuation.RESTART)
        plain = replace(self.loaded, rule=rule, is_exact=False)
        return plain.logits(tokens, plain.new_state(), len(tokens))

    def _distance(self, logits: torch.Tensor) -> float:
        """How far the last tokens' logits lie from the expected ones: root mean squares over deviations, averaged."""
        expected = self.expected[-len(logits) :]
        errors = (logits - expected).square().mean(-1).sqrt() / expected.std(-1)
        return float(errors.mean().nan_to_num(torch.inf, torch.inf))

    def _bound(self, cut: int) -> float:
        """What is rounding behind token `cut`: in float32 next to nothing, else less than one altered token changes."""
        if self.loaded.dtype == torch.float32 and self.loaded.weights.mode is WeightsMode.NATIVE:
            return FINE_BOUND
        effects: list[float] = []
        for place in (2, cut - 1):
            altered = list(self.tokens)
            altered[place] = (altered[place] + 1) % self.loaded.vocab_size
            effects.append(self._distance(self._plain(altered)[cut:]))
        least, most = COARSE_BOUNDS
        if self.loaded.weights.mode is not WeightsMode.NATIVE:
            least = INTEGERS_BOUND
        return min(max(least, ALTERED_SHARE * min(effects)), most)

    def _distances(self, loaded: LoadedModel, cut: int) -> Sequence[float]:
        """Continued, cut back, and restored from a cache."""
        state = loaded.new_state()
        loaded.forward(self.tokens[:cut], state)
        if loaded.rule.policy is ReusePolicy.NONE:
            return [self._continued(loaded, state)]
        state.take()
        found = [self._continued(loaded, state)]
        state.keep(cut + 1)
        found.append(self._continued(loaded, state))
        return [*found, self._continued(loaded, self._restored(loaded, state, cut + 2))]

    def _continued(self, loaded: LoadedModel, state: KVState) -> float:
        """Go on to the end, a few tokens first and then the rest, or one by one, as the model allows."""
        start, end = len(state.tokens), len(self.tokens)
        stops = (
            [start, start + 3, end]
            if loaded.rule.continuation is Continuation.CHUNK
            else range(start, end + 1)
        )
        said = [
            loaded.logits(self.tokens[first:last], state, last - first) for first, last in pairwise(stops)
        ]
        return self._distance(torch.cat(said))

    def _restored(self, loaded: LoadedModel, state: KVState, num_tokens: int) -> KVState:
        """A new state with what a cache gave back of this one's first tokens."""
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
                cache.commit(self.tokens, state.planes, at, states=states)
            match = cache.match(self.tokens[:num_tokens])
            with cache.lease(match) as lease:
                loaded_up = cache.load(lease, fresh.planes, 0, match.num_tokens, states=fresh.states)
        assert loaded_up.end == match.num_tokens > 0, "what was just stored is there"
        fresh.advance(self.tokens[: loaded_up.end])
        return fresh


def _to_json(verdict: Verdict) -> dict[str, Any]:
    rule = {"policy": verdict.rule.policy.value, "continuation": verdict.rule.continuation.value}
    found = {
        "difference": verdict.difference,
        "bound": verdict.bound,
        "is_checked": verdict.is_checked,
        "is_exact": verdict.is_exact,
    }
    return {**rule, **found}


def _from_json(value: Any, declared: ReuseRule) -> Verdict:
    policy, continuation = ReusePolicy(value["policy"]), Continuation(value["continuation"])
    rule = replace(declared, policy=policy, continuation=continuation)
    checked, exact = bool(value["is_checked"]), None if value["is_exact"] is None else bool(value["is_exact"])
    return Verdict(rule, declared, value["difference"], value["bound"], checked, exact)
