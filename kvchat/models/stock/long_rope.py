"""LongRoPE: from one length of a conversation on, all its keys are others, from the first token on. Sets which they are.

transformers takes the long factors wherever a forward reaches past the original context; computed in parts, or cut back,
a conversation would mix both. Here the regime belongs to the state. Knows no state and no forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

KIND = "longrope"


@dataclass(frozen=True, slots=True)
class _Frequencies:
    """A rotary module's buffer that holds the inverse frequencies in use, and both sets of them."""

    buffer: torch.Tensor
    short: torch.Tensor
    long: torch.Tensor


class LongRope:
    """The regimes of one model: conversations of more than `threshold` tokens are long."""

    def __init__(self, threshold: int, frequencies: list[_Frequencies]) -> None:
        self.threshold = threshold
        self._frequencies = frequencies
        self._is_long = False

    @classmethod
    def of(cls, model: Any) -> LongRope | None:
        """The regimes of a transformers model; None where there is only one."""
        found = list(_find(model))
        if not found:
            return None
        return cls(min(threshold for threshold, _ in found), [one for _, one in found])

    def is_long(self, num_tokens: int) -> bool:
        """Whether a conversation of `num_tokens` is beyond the threshold."""
        return num_tokens > self.threshold

    def use(self, is_long: bool) -> None:
        """Let the next forwards compute the keys of a long conversation, or of a short one."""
        if is_long == self._is_long:
            return
        for one in self._frequencies:
            one.buffer.copy_(one.long if is_long else one.short)
        self._is_long = is_long


def is_stated(config: Any) -> bool:
    """Whether a config speaks of LongRoPE at all."""
    stated = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return any(part.get("rope_type") == KIND for part in (stated, *stated.values()) if isinstance(part, dict))


def original_context(config: Any) -> int:
    """The context before it was made longer, in tokens: up to it there is one regime."""
    text = config.get_text_config(decoder=True)
    stated = [
        part for part in (text.rope_parameters, *text.rope_parameters.values()) if isinstance(part, dict)
    ]
    lengths = [
        part["original_max_position_embeddings"]
        for part in stated
        if "original_max_position_embeddings" in part
    ]
    return int(min([*lengths, text.max_position_embeddings]))


def _find(model: Any) -> Iterator[tuple[int, _Frequencies]]:
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if kinds == KIND:
            yield _frequencies(module, None)
        elif isinstance(kinds, dict):
            yield from (_frequencies(module, layer) for layer, kind in kinds.items() if kind == KIND)


def _frequencies(module: Any, layer_type: str | None) -> tuple[int, _Frequencies]:
    stated = (
        module.config.rope_parameters if layer_type is None else module.config.rope_parameters[layer_type]
    )
    threshold = int(stated["original_max_position_embeddings"])
    buffer = getattr(module, "original_inv_freq" if layer_type is None else f"{layer_type}_original_inv_freq")
    long, _ = ROPE_INIT_FUNCTIONS[KIND](
        module.config, buffer.device, seq_len=threshold + 1, layer_type=layer_type
    )
    return threshold, _Frequencies(buffer, buffer.clone(), long)
