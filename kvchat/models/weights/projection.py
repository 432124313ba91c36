"""Linear maps: of given tokens, many at once, and of generated ones, each as if it came alone. Knows no file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from kvchat.models.weights.floats import alone, has_apart, laid_out, linear
from kvchat.models.weights.matrix import Buffer, IntegerMatrix
from kvchat.models.weights.quantize import GROUP

MAX_ROWS = 14
"""Generated tokens of one forward. The kernel keeps so many rows apart: each gets the bits that it would get alone."""
LIKELIEST = 64
"""So many of a vocabulary's scores are computed with float32 sums."""
_TILE_BYTES = 16 << 20
"""Of floating numbers made of integers for one product. Measured: larger ones leave the caches, smaller ones multiply slower."""
_TILE_ROWS = 2048
_TILE_MULTIPLE = 64

Product = Callable[[torch.Tensor], torch.Tensor]


class Projection:
    """One linear map: y = x W^T + b, of a matrix `weight` [out, in], or of integer ones below one another.

    `generated` and `given` take [rows, in] to [rows, out] in x's dtype: contiguous rows, no more than MAX_ROWS, each as
    if it came alone; and any number of them. Given ones are multiplied by what integers stand for, which is made in
    `buffer` a tile at a time, or once for all where it `keeps` that: the bits are the same. `weight` may be `laid_out`.
    """

    __slots__ = ("_buffer", "_keeps", "_kept", "_tiles", "bias", "generated", "given", "matrices", "weight")

    def __init__(
        self,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None = None,
        matrices: Sequence[IntegerMatrix] = (),
        *,
        buffer: Buffer | None = None,
        keeps: bool = False,
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.matrices = tuple(matrices)
        self._buffer = buffer or Buffer()
        self._keeps = keeps
        self._kept: list[torch.Tensor] = []
        self._tiles = [tile for matrix in self.matrices for tile in _tiles(matrix)]
        self.given: Product = self._of_values if weight is None else partial(linear, weight=weight, bias=bias)
        self.generated: Product = self._of_integers() if matrices else self._row_by_row
        if not matrices and weight is not None and weight.is_mkldnn:
            self.generated = self.given

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [rows, in] -> [rows, out], in x's dtype."""
        is_few = self.matrices and x.shape[0] <= MAX_ROWS
        return self.generated(x.contiguous()) if is_few else self.given(x)

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        if self.weight is not None:
            return self.weight.shape[0], self.weight.shape[1]
        return sum(matrix.rows for matrix in self.matrices), self.matrices[0].columns

    @property
    def num_planes(self) -> int:
        """How many planes of 4 bits most of its numbers have; 0 where it has no integers."""
        return max((len(matrix.planes) for matrix in self.matrices), default=0)

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is held."""
        held = [self.weight, self.bias, *self._kept]
        integers = sum(matrix.num_bytes for matrix in self.matrices)
        return integers + sum(tensor.nbytes for tensor in held if tensor is not None)

    @property
    def read_bytes(self) -> int:
        """Bytes that a product with one row reads."""
        if self.matrices:
            return sum(matrix.num_bytes for matrix in self.matrices)
        assert self.weight is not None
        return self.weight.nbytes

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Some rows of the matrix, float32 [indices, in]; of integers only where they are of one matrix."""
        return self.matrices[0].take(indices) if self.weight is None else self.weight[indices].float()

    def scores(self, x: torch.Tensor, *, exact: bool) -> torch.Tensor:
        """The same of the last projection, in float32, [rows, out]: of each row as if it came alone.

        torch's products of bfloat16 round each sum to 8 bits: the likeliest tokens of a vocabulary differ by steps of
        an eighth, or not at all. With `exact` the greatest are computed once more from the weights themselves.
        """
        if self.matrices:
            sums = [self._sums(rows.contiguous(), torch.float32) for rows in torch.split(x, MAX_ROWS)]
            out = sums[0] if len(sums) == 1 else torch.cat(sums)
        else:
            out = self._row_by_row(x).float()
        if exact and (self.matrices or x.dtype == torch.bfloat16):
            for scores, row in zip(torch.split(out, 1), torch.split(x, 1), strict=True):
                self._sharpen(scores, row)
        return out

    def _sharpen(self, scores: torch.Tensor, x: torch.Tensor) -> None:
        """Put the greatest of each row of `scores` with float32 sums in their place."""
        likeliest = scores.topk(min(LIKELIEST, scores.shape[1]), sorted=False).indices
        sums = (self.take(likeliest[0]) * x.float()).sum(-1)[None]
        scores.scatter_(1, likeliest, sums if self.bias is None else sums + self.bias[likeliest])

    def _row_by_row(self, x: torch.Tensor) -> torch.Tensor:
        """One row takes another kernel than several do."""
        assert self.weight is not None
        if x.shape[0] == 1:
            return alone(x, self.weight, self.bias)
        return torch.cat([alone(row, self.weight, self.bias) for row in torch.split(x, 1)])

    def _of_integers(self) -> Product:
        """A token has four of these a layer: a function with as little to look up as can be."""
        (packed, scales), *others = self.matrices[0].planes
        if others or len(self.matrices) > 1 or self.bias is not None or self.matrices[0].group != GROUP:
            return lambda x: self._sums(x, x.dtype)
        kernel = torch._weight_int4pack_mm_for_cpu

        def product(x: torch.Tensor) -> torch.Tensor:
            if x.dtype == torch.bfloat16:
                return kernel(x, packed, GROUP, scales)
            return kernel(x.bfloat16(), packed, GROUP, scales).to(x.dtype)

        return product

    def _sums(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The kernel's products, in `dtype`. It multiplies bfloat16 alone at speed."""
        rounded = x.bfloat16()
        sums = [matrix.product(rounded, dtype) for matrix in self.matrices]
        out = sums[0] if len(sums) == 1 else torch.cat(sums, 1)
        if self.bias is not None:
            out += self.bias
        return out

    def _of_values(self, x: torch.Tensor) -> torch.Tensor:
        """By what the integers stand for."""
        if self._keeps and not self._kept:
            self._keep(x.dtype)
        if len(self._kept) == 1:
            return linear(x, self._kept[0], self.bias)
        out = torch.empty(x.shape[0], self.shape[0], dtype=x.dtype)
        first = 0
        for values in self._kept or (self._values(tile, x.dtype, self._buffer) for tile in self._tiles):
            last = first + values.shape[0]
            out[:, first:last] = linear(x, values)
            first = last
        if self.bias is not None:
            out += self.bias
        return out

    def _keep(self, dtype: torch.dtype) -> None:
        with torch.inference_mode(False):
            tiles = [self._values(tile, dtype, Buffer()) for tile in self._tiles]
            self._kept = [laid_out(torch.cat(tiles))] if has_apart(dtype) else tiles

    def _values(self, tile: _Tile, dtype: torch.dtype, buffer: Buffer) -> torch.Tensor:
        """[out, in], turned: it lies there as [in, out]."""
        matrix, start, end = tile
        return matrix.values(start, end, buffer.take((matrix.columns, end - start), dtype)).t()


_Tile = tuple[IntegerMatrix, int, int]


def _tiles(matrix: IntegerMatrix) -> list[_Tile]:
    """A matrix as parts of as many rows as make a tile."""
    rows = max(1, min(_TILE_BYTES // (4 * matrix.columns), _TILE_ROWS) // _TILE_MULTIPLE) * _TILE_MULTIPLE
    return [(matrix, start, min(start + rows, matrix.rows)) for start in range(0, matrix.rows, rows)]
