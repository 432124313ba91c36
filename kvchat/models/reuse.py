"""How much of a prompt's computation a model lets us keep: one declared table; what it says is checked by the probe."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class ReusePolicy(StrEnum):
    """`blocks`: KV can be cut at any token and put together again. `snapshots`: the state can be kept and taken up
    again, but only at the positions where it was kept. `none`: every prompt is computed anew."""

    BLOCKS = "blocks"
    SNAPSHOTS = "snapshots"
    NONE = "none"


class Continuation(StrEnum):
    """How tokens may be computed behind a state that is held: `chunk` several at a time, `one_token` one by one,
    `restart` not at all: all tokens from the first on are computed for every new one."""

    CHUNK = "chunk"
    ONE_TOKEN = "one_token"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class ReuseRule:
    """What a model lets us do. `note` says why, in a few words for a person, where it is less than all."""

    policy: ReusePolicy
    continuation: Continuation = Continuation.CHUNK
    note: str = ""

    def weaker(self) -> Iterator[ReuseRule]:
        """The rules to fall back to, the next weaker one first; the last is always right."""
        if self.policy is not ReusePolicy.NONE and self.continuation is Continuation.CHUNK:
            yield replace(self, continuation=Continuation.ONE_TOKEN)
        if self.policy is not ReusePolicy.NONE:
            yield replace(self, policy=ReusePolicy.NONE, continuation=Continuation.ONE_TOKEN)
        if self.continuation is not Continuation.RESTART:
            yield replace(self, policy=ReusePolicy.NONE, continuation=Continuation.RESTART)


BLOCKS = ReuseRule(ReusePolicy.BLOCKS)
SNAPSHOTS = ReuseRule(ReusePolicy.SNAPSHOTS)
STEPS = ReuseRule(
    ReusePolicy.SNAPSHOTS, Continuation.ONE_TOKEN, "a longer continuation of its state is wrong"
)
OUTSIDE = ReuseRule(ReusePolicy.NONE, Continuation.ONE_TOKEN, "it keeps state outside of the cache")
RESTART = ReuseRule(ReusePolicy.NONE, Continuation.RESTART, "its state can't be followed from token to token")
UNKNOWN = ReuseRule(ReusePolicy.NONE, Continuation.ONE_TOKEN, "its layers are of a kind of their own")

_CACHE_ARGUMENTS = ("past_key_values", "cache_params")

DIVISIBLE_LAYERS = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "dummy"}
)
"""Layer types whose state is some tensors a token, or nothing: these alone make `blocks`."""

RECURRENT_LAYERS = frozenset({"linear_attention", "conv", "hybrid", "hybrid_sliding"})
"""Layer types whose state is of one size whatever the length: `snapshots`, one token at a time unless a row says more."""

FAMILIES: Mapping[str, ReuseRule] = MappingProxyType(
    {
        "bailing_hybrid": SNAPSHOTS,
        "bamba": SNAPSHOTS,  # right with explicit positions alone, which it always gets
        "falcon_h1": SNAPSHOTS,
        "falcon_mamba": STEPS,
        "granitemoehybrid": SNAPSHOTS,
        "inkling2_text": SNAPSHOTS,
        "inkling_text": SNAPSHOTS,
        "jamba": STEPS,
        "kimi_linear": SNAPSHOTS,
        "lfm2": SNAPSHOTS,
        "lfm2_moe": SNAPSHOTS,
        "lfm3": SNAPSHOTS,
        "mamba": STEPS,
        "mamba2": SNAPSHOTS,
        "minimax": RESTART,
        "moshi": RESTART,
        "nemotron_h": SNAPSHOTS,
        "olmo_hybrid": SNAPSHOTS,
        "qwen3_5_moe_text": SNAPSHOTS,
        "qwen3_5_text": SNAPSHOTS,
        "qwen3_next": SNAPSHOTS,
        "qwen4_exp_text": UNKNOWN,
        "recurrent_gemma": OUTSIDE,
        "xlstm": RESTART,
        "zamba": STEPS,
        "zamba2": SNAPSHOTS,
        "zaya": SNAPSHOTS,
    }
)
"""By transformers' name of the family, where the layer types don't decide. Names that are missing get the safe side."""


def reuse_rule(model: Any) -> ReuseRule:
    """What is declared for a loaded transformers model; whatever is not known gets the weakest rule that fits."""
    if cache_argument(model) is None:
        return RESTART
    config = model.config.get_text_config(decoder=True)
    named = next((FAMILIES[name] for name in _names(model.config) if name in FAMILIES), None)
    layer_types = layer_types_of(config)
    if not layer_types:
        return RESTART
    if layer_types <= DIVISIBLE_LAYERS and (named is None or named.policy is not ReusePolicy.NONE):
        return OUTSIDE if named is None and getattr(model, "_is_stateful", False) else BLOCKS
    if named is not None:
        return named
    return STEPS if layer_types <= DIVISIBLE_LAYERS | RECURRENT_LAYERS else UNKNOWN


def layer_types_of(config: Any) -> set[str]:
    """What transformers' cache calls a text model's layers; empty where it could not make one for them."""
    from transformers.cache_utils import (
        get_layer_types_and_kwargs,  # not for models that do without transformers
    )

    try:
        return set(get_layer_types_and_kwargs(config)[0])
    except AttributeError:  # several stacks of layers, or none
        return set()


def cache_argument(model: Any) -> str | None:
    """The argument of a forward that takes the cache; None where the model has none that can be followed."""
    accepted = inspect.signature(model.forward).parameters
    return next((argument for argument in _CACHE_ARGUMENTS if argument in accepted), None)


def _names(config: Any) -> tuple[str, str]:
    """A model's family, and that of its text part where it has several parts."""
    return config.model_type, config.get_text_config(decoder=True).model_type
