"""How the generated tokens of several conversations attend in one forward: each over its own arena, as it would alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from kvchat.models.company import Part
from kvchat.models.lean.attention import Attention
from kvchat.models.lean.flash import kernel
from kvchat.models.lean.state import LeanState

Held = tuple[torch.Tensor, ...]
"""Where one part's K and V go in a layer, and the K and the V that it attends to; `LeanState.views` says their shapes."""


class Company:
    """The parts of one forward; the rows of all of them, one part's behind another's, are `sum(sizes)`."""

    def __init__(self, parts: Sequence[Part], attention: Callable[[int, int], Attention]) -> None:
        """`attention` is that of so many new tokens behind so many that are held."""
        self.starts = [len(part.state.tokens) for part in parts]
        self.sizes = [len(part.tokens) for part in parts]
        self._states = [part.state for part in parts]
        self._tasks = [attention(start, size) for start, size in zip(self.starts, self.sizes, strict=True)]
        self._kernels = [kernel(task, task.reach) for task in self._tasks]

    def layers(self) -> Iterator[tuple[Held, ...]]:
        """For each layer what every part holds there."""
        views = []
        for state, task in zip(self._states, self._tasks, strict=True):
            assert isinstance(state, LeanState)
            views.append(state.views(task.old, task.total, task.reach, is_flat=task.is_flat))
        return zip(*views, strict=True)

    def attended(self, query: torch.Tensor, key_value: torch.Tensor, held: Sequence[Held]) -> torch.Tensor:
        """What all rows' heads find, [rows, heads * head_dim]. K and V of the rows, [rows, 2 kv_heads, head_dim], are
        put into their arenas before."""
        found, first = [], 0
        for size, attend, (written, keys, values) in zip(self.sizes, self._kernels, held, strict=True):
            last = first + size
            written.copy_(key_value[first:last])
            found.append(attend(query[first:last], keys, values).reshape(size, -1))
            first = last
        return torch.cat(found)
