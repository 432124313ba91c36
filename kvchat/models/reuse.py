"""How much of a prompt's computation a model lets us keep, declared by what its layers store."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from transformers.cache_utils import get_layer_types_and_kwargs


class ReusePolicy(StrEnum):
    """`blocks`: KV can be cut at any token and put together again. `none`: every prompt is computed anew."""

    BLOCKS = "blocks"
    NONE = "none"


DIVISIBLE_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention", "dummy"})
"""Layer types whose state is one K and one V a token, or nothing."""


def reuse_policy(model: Any) -> ReusePolicy:
    """The policy for a loaded transformers model; whatever is not known to be divisible gets `none`."""
    if getattr(model, "_is_stateful", False):
        return ReusePolicy.NONE
    layer_types, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    return ReusePolicy.BLOCKS if set(layer_types) <= DIVISIBLE_LAYERS else ReusePolicy.NONE
