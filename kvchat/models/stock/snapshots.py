"""The state of a model with recurrent layers: it goes on anywhere, and goes back only to where a snapshot was taken."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionCacheLayerMixin, LinearAttentionLayer

from kvchat.models.stock.arena import Arena

TAKEN_BYTES = 256 * 2**20
"""What snapshots may take that were taken and are not stored yet; the newest is kept whatever it takes."""


class Snapshots(Arena):
    """An arena for the layers with KV, and beside it what the recurrent layers hold, which knows only its present end.

    A forward changes the recurrent states in place, so one that fails leaves nothing but the snapshots.
    """

    def __init__(self, config: Any, *, capacity: int, device: torch.device) -> None:
        super().__init__(config, capacity=capacity, device=device)
        self._taken: OrderedDict[int, list[torch.Tensor]] = OrderedDict()  # on the CPU, the newest last
        self._recurrent = [
            layer for layer in self._cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)
        ]
        self._has_previous: list[dict[int, bool]] = []

    @property
    def is_divisible(self) -> bool:
        return False

    @property
    def states(self) -> list[torch.Tensor]:
        return [state for layer in self._recurrent for state in _states(layer)]

    @property
    def taken(self) -> Mapping[int, list[torch.Tensor]]:
        return self._taken

    def take(self) -> None:
        length = len(self.tokens)
        if not length or length in self._taken:
            return
        self._taken[length] = [state.detach().to("cpu", copy=True) for state in self.states]
        size = sum(state.nbytes for state in self._taken[length])
        while len(self._taken) > max(1, TAKEN_BYTES // max(1, size)):
            self._taken.popitem(last=False)

    def drop(self, length: int) -> None:
        self._taken.pop(length, None)

    def keepable(self, num_tokens: int) -> int:
        if num_tokens >= len(self.tokens):
            return len(self.tokens)
        return self._last_taken(num_tokens)

    def _last_taken(self, num_tokens: int) -> int:
        usable = (length for length in self._taken if length <= num_tokens and self.is_whole(length))
        return max(usable, default=0)

    def keep(self, num_tokens: int) -> int:
        if num_tokens < len(self.tokens):
            self._rewind(num_tokens)
        return len(self.tokens)

    def shrink(self) -> None:
        for length in list(self._taken)[:-1]:
            del self._taken[length]
        super().shrink()

    def lose(self) -> None:
        self._rewind(len(self.tokens))

    def advance(self, tokens: Sequence[int], *, first_held: int | None = None) -> None:
        """As every state; what was brought in must be in `states` and `planes` by now."""
        super().advance(tokens, first_held=first_held)
        if not self._has_previous:
            self._has_previous = [dict(layer.has_previous_state) for layer in self._recurrent]
        for layer, flags in zip(self._recurrent, self._has_previous, strict=True):
            layer.has_previous_state.update(flags)

    def _rewind(self, num_tokens: int) -> None:
        """Go back to the last snapshot that is not behind `num_tokens`, or to the beginning."""
        for length in [length for length in self._taken if length > num_tokens]:
            del self._taken[length]
        at = self._last_taken(num_tokens)
        del self.tokens[at:]
        if at == 0:
            for layer in self._recurrent:
                with torch.inference_mode():
                    LinearAttentionLayer.reset(layer)
            return
        with torch.inference_mode():
            for state, copy in zip(self.states, self._taken[at], strict=True):
                state.copy_(copy)


def _states(layer: Any) -> Iterator[torch.Tensor]:
    """A recurrent layer's tensors, in an order that never changes."""
    for held in (layer.conv_states, layer.recurrent_states):
        yield from (state for state in held.values() if state is not None)
