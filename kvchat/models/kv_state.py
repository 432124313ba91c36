"""The live conversation's KV and what tokens it belongs to; knows no prompt, no cache beyond the live one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from kvchat.cache.block import KVLayout, StateShape

if TYPE_CHECKING:
    import torch


class KVState(Protocol):
    """What the engine keeps between turns: the model's state after exactly `tokens`."""

    tokens: list[int]
    """The token ids whose state is held, in order. The state never says more than it holds."""

    first_held: int
    """Some layers look at a window alone and hold nothing that is older: their KV begins at this token."""

    @property
    def planes(self) -> list[torch.Tensor]:
        """K and V of each layer that has them, each [kv_heads, capacity, head_dim]; empty where KV can't be cut."""

    @property
    def states(self) -> list[torch.Tensor]:
        """What recurrent layers hold, each of one shape whatever the length; empty where there are none."""

    @property
    def taken(self) -> Mapping[int, list[torch.Tensor]]:
        """Snapshots that are not kept elsewhere: the `states` as they were behind so many of `tokens`."""

    @property
    def is_divisible(self) -> bool:
        """Whether a prefix of any length can be kept, and the tokens behind it computed in several forwards."""

    def keepable(self, num_tokens: int) -> int:
        """How many of the first `num_tokens` `keep` would keep; changes nothing."""

    def keep(self, num_tokens: int) -> int:
        """Forget all but the first `num_tokens`; returns how many could really be kept."""

    def advance(self, tokens: Sequence[int], *, first_held: int | None = None) -> None:
        """The state of `tokens`, behind those held, was computed or brought in: it is held from now on.

        `first_held` is given where it was brought in."""

    def take(self) -> None:
        """Take a snapshot here, where that is the way back and there is none yet."""

    def drop(self, length: int) -> None:
        """Forget the snapshot behind `length` tokens: it is kept elsewhere."""

    def lose(self) -> None:
        """A forward failed in the middle: keep what is still right."""

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` in all. Raises torch.OutOfMemoryError or RuntimeError."""

    def shrink(self) -> None:
        """Give back the memory that what is held does not need."""

    def missing(self, shared: int, end: int) -> int:
        """From which token on KV has to be brought in to have that of `end` tokens, of which the first `shared` are
        those whose KV was here last; changes nothing."""

    @property
    def excess(self) -> int:
        """Tokens that layers with a window hold and no longer look at, and that `release` would give back."""

    def release(self) -> None:
        """Give back the memory of the `excess`; what is to be kept of it must be stored by now."""


def kv_layout(state: KVState) -> KVLayout | None:
    """The shapes of one token's KV and of the recurrent states; None where neither can be taken up again. Known
    after the first forward."""
    planes, states = state.planes, state.states
    if not planes and not states:
        return None
    shapes = tuple((plane.shape[0], plane.shape[2]) for plane in planes)
    recurrent = tuple(StateShape(tuple(state.shape), _name(state.dtype)) for state in states)
    widest = max(planes or states, key=lambda tensor: tensor.element_size())  # of an indexer's keys, say
    return KVLayout(shapes, _name(widest.dtype), recurrent)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Divisible:
    """What every state has in common that may be cut back to any length: what lies behind `tokens` does not count."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.first_held = 0

    @property
    def is_divisible(self) -> bool:
        return True

    @property
    def states(self) -> list[torch.Tensor]:
        return []

    @property
    def taken(self) -> Mapping[int, list[torch.Tensor]]:
        return {}

    def keepable(self, num_tokens: int) -> int:
        return min(num_tokens, len(self.tokens))

    def keep(self, num_tokens: int) -> int:
        del self.tokens[num_tokens:]
        return len(self.tokens)

    def advance(self, tokens: Sequence[int], *, first_held: int | None = None) -> None:
        if first_held is not None:
            self.first_held = first_held
        elif not self.tokens:
            self.first_held = 0
        self.tokens.extend(tokens)

    def take(self) -> None:
        """Every token is a way back."""

    def drop(self, length: int) -> None:
        """There is none."""

    def lose(self) -> None:
        """What a forward wrote behind `tokens` does not count."""

    def shrink(self) -> None:
        """Nothing is allocated beyond what is held."""

    def missing(self, shared: int, end: int) -> int:
        return min(shared, end)

    @property
    def excess(self) -> int:
        return 0

    def release(self) -> None:
        """No layer has a window."""
