"""How fast the model computes, as measured while it does, and kept from run to run; decides nothing."""

from __future__ import annotations

import math
import platform

import torch

from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.costs import SMALL_TOKENS, Costs, packed, unpack

KEPT_EVERY = 64
"""After so many forwards the table is kept anew, and whenever a size is known for the first time."""


class Pace:
    """Seconds a token, from one table of costs; 0 until something was measured."""

    def __init__(self) -> None:
        self.costs = Costs()
        self.prefill_s_per_token = 0.0
        """Of many tokens computed at once; a first guess comes from few."""
        self.step_s = 0.0
        """Of one token computed alone."""
        self._keeper: PrefixCache | None = None
        self._num_new = 0
        self._num_kept_sizes = 0

    def keep_in(self, keeper: PrefixCache | None) -> None:
        """Begin with what was kept there by an earlier run on this machine, and keep what is measured."""
        self._keeper = keeper
        if keeper is not None:
            unpack(keeper.note(), _machine(), self.costs)
            self._num_kept_sizes = self.costs.num_sizes
            self._refresh()

    def forward_s(self, num_tokens: int) -> float:
        """About what one forward over so many tokens takes, in seconds."""
        return max(self.step_s, self.prefill_s_per_token * num_tokens)

    def fitting(self, seconds: float, most: int) -> int:
        """Of how many tokens a forward takes no longer than `seconds`, as a power of two; `most` until that is known."""
        token_s = self.prefill_s_per_token
        return 2 ** int(math.log2(max(1.0, seconds / token_s))) if token_s * most > seconds else most

    def saved_s(self, num_tokens: int) -> float:
        """What not computing so many tokens of a prompt saves at least, in seconds; 0 until that is known."""
        return self.costs.prefill_s(num_tokens)

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Take in that one forward over so many tokens took so long."""
        self.costs.add(num_tokens, seconds)
        if not self.costs.rate and (num_tokens >= SMALL_TOKENS or not self.prefill_s_per_token):
            self.prefill_s_per_token = seconds / num_tokens if num_tokens > 1 else 0.0
        self._refresh()
        self._keep()

    def _refresh(self) -> None:
        self.prefill_s_per_token = self.costs.rate or self.prefill_s_per_token
        self.step_s = self.costs.of(1) or self.step_s

    def _keep(self) -> None:
        self._num_new += 1
        num_sizes = self.costs.num_sizes
        if self._keeper is not None and (num_sizes > self._num_kept_sizes or self._num_new >= KEPT_EVERY):
            self._keeper.keep_note(packed(self.costs, _machine()))
            self._num_kept_sizes, self._num_new = num_sizes, 0


def _machine() -> str:
    """What costs depend on beside the model."""
    return f"{platform.node()} {platform.machine()}, {torch.get_num_threads()} threads"
