"""A model's forwards over one state: where memory runs out, room is made and the forward is tried once more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from kvchat.errors import OutOfMemoryError
from kvchat.models.device import is_out_of_memory
from kvchat.models.kv_state import KVState
from kvchat.models.loaded import LoadedModel

T = TypeVar("T")
IsCancelled = Callable[[], bool] | None
Tell = Callable[[int], None]
"""Is told how many layers of a forward have begun."""


def _unheard(num_layers: int) -> None:
    """Nobody listens."""


class Forwards:
    """The forwards of `loaded`; `make_room` gives back whatever memory is not needed to go on with a state.

    Each raises OutOfMemoryError, with its remedy, when that was not enough; the state then holds what it says.
    """

    def __init__(self, loaded: LoadedModel, make_room: Callable[[KVState], None]) -> None:
        self.loaded = loaded
        self._make_room = make_room

    def forward(
        self, tokens: Sequence[int], state: KVState, is_cancelled: IsCancelled = None, tell: Tell = _unheard
    ) -> torch.Tensor:
        """Compute `tokens` behind what `state` holds; returns the last position's logits, [vocab] in float32.

        It ends between two layers, with Interrupted, once it is cancelled, unless what is held would go with it.
        """
        return self.logits(tokens, state, 1, is_cancelled, tell)[0]

    def logits(
        self,
        tokens: Sequence[int],
        state: KVState,
        num_logits: int,
        is_cancelled: IsCancelled = None,
        tell: Tell = _unheard,
    ) -> torch.Tensor:
        """The same, with the logits of the last `num_logits` positions, [num_logits, vocab] in float32."""
        held = list(state.tokens) if self.loaded.may_lose(state) else None
        if held:  # it would go with a forward that ends between two layers
            is_cancelled = None

        def compute() -> torch.Tensor:
            if held and len(state.tokens) < len(held):  # a failed forward took it along
                state.keep(0)
                self.loaded.forward(held, state)
            with self.loaded.network.pauses.asking(is_cancelled, tell):
                return self.loaded.logits(tokens, state, num_logits)

        return self.with_room(compute, state)

    def with_room(self, action: Callable[[], T], state: KVState) -> T:
        """What `action` returns, which uses `state`, tried once more where memory runs out. Raises OutOfMemoryError after that."""
        try:
            return action()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._make_room(state)  # out here the failed forward's tensors are gone
        try:
            return action()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise self._exhausted(error) from error

    def _exhausted(self, error: Exception) -> OutOfMemoryError:
        name, device = self.loaded.name, self.loaded.device
        return OutOfMemoryError(
            f"{device} ran out of memory while {name} was answering, and emptying the cache did not help",
            "say less at once (/new, /undo), give --context fewer tokens, or take a smaller model",
        )
