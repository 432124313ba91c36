"""What values a model's settings may have: rules with bounds, by key. Reads no file and knows what no value is for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import FETCH_AGAIN, shown

Rule = Callable[[Any], bool]
"""Whether a value may stand there."""

MAX_TOKEN_ID = 1 << 24
"""No vocabulary is so large."""
_MAX_POSITIONS = 1 << 31
_FEW_LAYERS = 256
_MANY = 1 << 16
_LARGEST = 2**63


def whole(low: int, high: int) -> Rule:
    """A whole number from `low` to `high`."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def number(low: float, high: float) -> Rule:
    """A finite number from `low` to `high`."""
    return lambda value: (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
    )


def flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def text(value: Any) -> bool:
    """A text that is no book."""
    return isinstance(value, str) and len(value) <= _MANY


def several(rule: Rule) -> Rule:
    """A list of what `rule` allows."""
    return lambda value: isinstance(value, list) and len(value) <= _MANY and all(map(rule, value))


def one_each(*rules: Rule) -> Rule:
    """A list of as many values as there are `rules`, each what its rule allows."""
    return lambda value: (
        isinstance(value, list)
        and len(value) == len(rules)
        and all(rule(item) for rule, item in zip(rules, value, strict=True))
    )


def either(*rules: Rule) -> Rule:
    """What one of `rules` allows."""
    return lambda value: any(rule(value) for rule in rules)


def check(
    content: Mapping[str, Any], rules: Mapping[str, Rule], path: Path, remedy: str = FETCH_AGAIN
) -> None:
    """Raise ModelUnavailableError, naming the key, for a value that its rule does not allow; null is always allowed."""
    for key, rule in rules.items():
        value = content.get(key)
        if value is not None and not rule(value):
            raise ModelUnavailableError(f"{path}: {key} can't be {shown(value)}", remedy)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a model's weights files hold: how many tensors, and the largest dimension among them."""

    num_tensors: int
    largest: int


def check_config(config: Mapping[str, Any], stored: Stored, path: Path) -> None:
    """Raise ModelUnavailableError, naming the key, for a number that makes no sense, or not with the tensors there are.

    Each family has names of its own for its sizes: they are known by what they end or begin with, at every depth.
    """
    for key, value in _numbers(config):
        low, high = _bounds(key, stored)
        is_too_long = isinstance(value, int) and abs(value) > _LARGEST
        if is_too_long or not low <= value <= high:  # nor is NaN anything
            raise ModelUnavailableError(f"{path}: {key} can't be {shown(value)}", FETCH_AGAIN)


def _numbers(content: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Every number with the key that it stands under."""
    waiting: list[tuple[str, Any]] = list(content.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.items())
        elif isinstance(value, list):
            waiting.extend((key, item) for item in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def _bounds(key: str, stored: Stored) -> tuple[float, float]:
    """The least and the most that a number under this key may be."""
    found = next((row for row in _BOUNDS if row[0].search(key)), None)
    return (found[1], found[2](stored)) if found else (-math.inf, math.inf)


def _layers(stored: Stored) -> int:
    """A layer has a tensor, but for the few families that share them."""
    return max(_FEW_LAYERS, stored.num_tensors)


def _parts(stored: Stored) -> int:
    """What may be a module each, or a dimension."""
    return max(_MANY, stored.largest)


def _anything_small(stored: Stored) -> int:
    """Samples, frames, buckets: no tensor tells how many, and none is made of them."""
    return max(_MANY << 6, stored.largest)


_BOUNDS: tuple[tuple[re.Pattern[str], float, Callable[[Stored], float]], ...] = (
    (re.compile(r"token_(id|index)"), -100, lambda stored: MAX_TOKEN_ID),
    (re.compile(r"^(max_position_embeddings|n_positions|n_ctx)$"), 1, lambda stored: _MAX_POSITIONS),
    (re.compile(r"^(num_hidden_layers|num_layers|n_layers?)$"), 1, _layers),
    (re.compile(r"layers?$"), -100, _layers),  # some count from the last
    (re.compile(r"^(hidden_size|vocab_size|num_attention_heads|d_model|n_embd|n_head)$"), 1, _parts),
    (re.compile(r"expert|label|_(rank|dim|heads)$|(intermediate|ffn|state)_size$"), -1, _parts),
    (re.compile(r"^(num|n)_|_size$"), -1, _anything_small),
    (re.compile(r"norm_eps|epsilon$"), 0, lambda stored: 1),
    (re.compile(r"rope_theta|rotary_emb_base"), 1e-3, lambda stored: 1e30),
    (re.compile(""), -math.inf, lambda stored: math.inf),  # infinite limits are published
)
"""What a key looks like, and between what its numbers lie; the first that fits counts."""
