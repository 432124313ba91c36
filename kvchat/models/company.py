"""Generated tokens of several conversations that one forward computes, each behind its own: values alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvchat.models.kv_state import KVState

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Part:
    """What one conversation has computed: `tokens`, all generated, behind what its `state` holds."""

    tokens: Sequence[int]
    state: KVState


Together = Callable[[Sequence[Part]], "list[torch.Tensor]"]
"""Computes parts of different states, and gives the logits of each, [tokens, vocab] in float32, to the bit as they are
where it is computed alone. K and V stand in the states afterwards, and count once these `advance`."""
