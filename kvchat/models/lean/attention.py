"""The attention of new tokens over a long arena as a value: its sizes, and what is worth doing for them. Computes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

FEW_ROWS = 32
"""Up to so many rows a product that walks along the keys reads them at the memory's speed."""
MIN_SCORES_OF_FEW = 6 * 2**10
MIN_ROUNDED_SCORES_OF_FEW = 3 * 2**10
MIN_SCORES_OF_MANY = 20 * 2**10
"""Fewer scores a head than this are done sooner by the flash kernel. Measured, as are the two above."""
MIN_SPLIT = 4096
"""One token's attention over so many keys is split into parts. Measured."""
KEYS_AT_ONCE = 64
"""Products are over a multiple of so many keys: a matrix kernel for new sizes takes as long to make as ten to run."""
TILE, NARROW_TILE = 16, 32
"""Given tokens attend in tiles of so many, in float32 and in narrower numbers, which begin at multiples of it: whoever
computes a token makes the very calls. Measured: larger ones are slower for a few tokens, smaller ones for many."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention of the last `new` of `total` tokens: what is chosen once for all layers of a forward.

    Without `exact` a few tokens' scores over many keys in bfloat16 may be rounded to bfloat16, as transformers' eager
    attention rounds them. With `is_apart` each new token gets the very rounding that a call for it alone would have,
    and where they are `given`, the one that it has among any others.
    """

    heads: int
    kv_heads: int
    dim: int
    new: int
    total: int
    dtype: torch.dtype
    scale: float | None = None
    exact: bool = True
    is_apart: bool = False
    is_given: bool = False

    @property
    def reach(self) -> int:
        """How many keys it is handed at best: products of the same sizes as the last token's need no new kernel. What
        lies behind `total` only has to be finite."""
        rounds_up = self.is_given or self.is_by_products
        return -(-self.total // KEYS_AT_ONCE) * KEYS_AT_ONCE if rounds_up else self.total

    @property
    def is_flat(self) -> bool:
        """Whether keys and values come without the first dimension, which is always 1."""
        if self.is_given:
            return self.dtype == torch.float32
        return self.is_by_products and not (self.is_apart and self.new > 1)

    def corner(self, reach: int) -> torch.Tensor:
        """What hides from each new token its successors and all that lies behind them, [new, reach - old]."""
        return torch.full((self.new, reach - self.old), -torch.inf).triu_(1)

    def mask(self) -> torch.Tensor:
        """What hides each row's successors from it, [rows, total]."""
        hidden = torch.full((self.new, self.total), -torch.inf, dtype=self.dtype).triu_(self.old + 1)
        return hidden.repeat(self.groups, 1)

    @property
    def tile(self) -> int:
        """Tokens of one tile."""
        return TILE if self.dtype == torch.float32 else NARROW_TILE

    @property
    def old(self) -> int:
        """Keys that no new token may miss."""
        return self.total - self.new

    @property
    def groups(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.kv_heads

    @property
    def rows(self) -> int:
        """The query heads of a group are rows of one product."""
        return self.groups * self.new

    @property
    def factor(self) -> float:
        """What scores are multiplied by."""
        return self.dim**-0.5 if self.scale is None else self.scale

    @property
    def is_by_products(self) -> bool:
        """Whether two matrix products are faster than the flash kernel, and as exact as is asked for."""
        if self.dtype != torch.bfloat16 or (self.new == 1 and self.exact and self.total >= MIN_SPLIT):
            return False
        least_of_few = MIN_SCORES_OF_FEW if self.exact else MIN_ROUNDED_SCORES_OF_FEW
        return self.rows * self.total >= (least_of_few if self.rows <= FEW_ROWS else MIN_SCORES_OF_MANY)
