"""Checkpoints of floats with few bits and scales beside them (fp8 by blocks, MXFP4), read as the numbers they stand for.

fp8: a matrix `X` of 8-bit floats, and `X_scale_inv` with one factor a block of `weight_block_size` rows and columns (DeepSeek's
layout), or one for all. MXFP4: `X_blocks` holds 32 numbers of 4 bits in 16 bytes, the low halves first of each byte, and `X_scales`
their common power of two (OCP Microscaling Formats 1.0); gpt-oss stores its experts so, each matrix on its side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from kvchat.errors import ModelUnavailableError
from kvchat.models.checkpoint import SafetensorsCheckpoint
from kvchat.models.documents import FETCH_AGAIN, read_object, shown
from kvchat.models.foreign import METHODS
from kvchat.models.sources.folder import tensor_dtypes
from kvchat.models.weights.quantize import Integers

_FP8 = frozenset(("F8_E4M3", "F8_E5M2"))
_SCALE, _BLOCKS, _SCALES = "_scale_inv", "_blocks", "_scales"
_OF_ACTIVATIONS = (".activation_scale", ".input_scale")
"""What a GPU would round with while it computes."""
_HALVES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
_EXPONENT_OF_ONE, _NO_NUMBER = 127, 255


@dataclass(frozen=True, slots=True)
class _Stored:
    """A folder's tensors as they are stored, with the dtype of each as safetensors calls it."""

    tensors: SafetensorsCheckpoint
    dtypes: Mapping[str, str]

    def refusal(self, name: str, what: str) -> ModelUnavailableError:
        """The error for a tensor."""
        return ModelUnavailableError(f"{self.tensors.folder}: the tensor {name} {what}", FETCH_AGAIN)


class _Scaled(Protocol):
    """One tensor that is stored in two."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it stands for."""

    def get(self) -> torch.Tensor:
        """What it stands for."""

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Some rows of a matrix, in memory of their own."""


class ScaledCheckpoint:
    """A `Checkpoint` of a folder whose config.json states one of the METHODS.

    Raises ModelUnavailableError, naming the tensor, for scales that are missing or don't fit.
    """

    def __init__(self, folder: Path, stated: Mapping[str, Any]) -> None:
        self._stored = _Stored(SafetensorsCheckpoint(folder), tensor_dtypes(folder))
        self._scaled: dict[str, _Scaled] = {}
        names, block = self._stored.tensors.names, _block(folder, stated)
        for name in sorted(names):
            if name.endswith(_BLOCKS):
                whole = name.removesuffix(_BLOCKS)
                self._scaled[whole] = _Mxfp4.of(self._stored, whole)
            elif f"{name}{_SCALE}" in names:
                self._scaled[name] = _Fp8.of(self._stored, name, block)
        beside = {f"{name}{end}" for name in self._scaled for end in (_SCALE, _BLOCKS, _SCALES)}
        plain = {name for name in names - beside if not name.endswith(_OF_ACTIVATIONS)}
        self._names = plain | self._scaled.keys()

    @classmethod
    def of(cls, folder: Path) -> ScaledCheckpoint | None:
        """A folder's; None where its config.json states no such method."""
        stated = read_object(folder / "config.json").get("quantization_config")
        if isinstance(stated, dict) and stated.get("quant_method") in METHODS:
            return cls(folder, stated)
        return None

    @property
    def paths(self) -> list[Path]:
        """See Checkpoint."""
        return self._stored.tensors.paths

    @property
    def names(self) -> set[str]:
        """See Checkpoint."""
        return set(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """See Checkpoint."""
        return self._scaled[name].shape if name in self._scaled else self._stored.tensors.shape(name)

    def get(self, name: str) -> torch.Tensor:
        """See Checkpoint."""
        return self._scaled[name].get() if name in self._scaled else self._stored.tensors.get(name)

    def rows(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        """See Checkpoint."""
        if name not in self._scaled:
            return self._stored.tensors.rows(name, indices)
        return torch.cat([self._scaled[name].rows(row, row + 1) for row in indices.tolist()])

    def part(self, name: str, start: int, end: int) -> torch.Tensor:
        """See Checkpoint."""
        scaled = self._scaled.get(name)
        return scaled.rows(start, end) if scaled else self._stored.tensors.part(name, start, end)

    def is_quantised(self, name: str) -> bool:
        """See Checkpoint: floats have no integers that a kernel could take."""
        return False

    def integers(self, name: str, start: int, end: int) -> Integers | None:
        """See Checkpoint."""
        return None

    def as_needed(self) -> dict[str, Any]:
        """All tensors by name, each made when it is read, as `from_pretrained` takes a `state_dict`."""
        return {name: _Unread(self, name) for name in self._names}


@dataclass(frozen=True, slots=True)
class _Unread:
    """A tensor that is not made yet: a slice of it, as safetensors has them."""

    checkpoint: ScaledCheckpoint
    name: str

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.checkpoint.get(self.name)[index]

    def get_shape(self) -> list[int]:
        """Its sizes."""
        return list(self.checkpoint.shape(self.name))


@dataclass(frozen=True, slots=True)
class _Fp8:
    """8-bit floats [..., rows, columns] and their scales [..., blocks of rows, blocks of columns], or one."""

    stored: _Stored
    name: str
    block: tuple[int, int]

    @classmethod
    def of(cls, stored: _Stored, name: str, block: tuple[int, int] | None) -> _Fp8:
        shape, scales = stored.tensors.shape(name), stored.tensors.shape(f"{name}{_SCALE}")
        if stored.dtypes[name] not in _FP8:
            raise stored.refusal(name, "has scales, and is no fp8")
        if math.prod(scales) == 1:
            return cls(stored, name, (0, 0))
        if block is None or len(shape) < 2:
            raise stored.refusal(
                name, "has a scale for each block, and config.json does not say of what size"
            )
        blocks = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
        if scales != blocks:
            raise stored.refusal(name, f"has scales {list(scales)}, where its blocks are {list(blocks)}")
        return cls(stored, name, block)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.tensors.shape(self.name)

    def get(self) -> torch.Tensor:
        return self._times_scales(self.stored.tensors.get(self.name), 0)

    def rows(self, start: int, end: int) -> torch.Tensor:
        return self._times_scales(self.stored.tensors.part(self.name, start, end), start)

    def _times_scales(self, numbers: torch.Tensor, start: int) -> torch.Tensor:
        """`numbers` are the rows from `start` on; the product is rounded once, to float32."""
        values, scales = numbers.float(), self.stored.tensors.get(f"{self.name}{_SCALE}").float()
        if self.block == (0, 0):
            return values.mul_(scales.reshape(()))
        rows, columns = values.shape[-2:]
        of_rows = torch.arange(start, start + rows) // self.block[0]
        of_columns = torch.arange(columns) // self.block[1]
        return values.mul_(scales[..., of_rows, :][..., of_columns])


@dataclass(frozen=True, slots=True)
class _Mxfp4:
    """Bytes [experts, rows, groups, 16] and exponents [experts, rows, groups]; together [experts, 32 groups, rows]."""

    stored: _Stored
    name: str

    @classmethod
    def of(cls, stored: _Stored, name: str) -> _Mxfp4:
        dtypes = [stored.dtypes.get(f"{name}{end}") for end in (_BLOCKS, _SCALES)]
        if dtypes[1] is None:
            raise stored.refusal(f"{name}{_BLOCKS}", "has no scales")
        blocks, scales = (stored.tensors.shape(f"{name}{end}") for end in (_BLOCKS, _SCALES))
        if len(blocks) != 4 or blocks[3] != 16 or blocks[:3] != scales or dtypes != ["U8", "U8"]:
            raise stored.refusal(name, f"is no MXFP4: blocks {list(blocks)} and scales {list(scales)}")
        return cls(stored, name)

    @property
    def shape(self) -> tuple[int, ...]:
        experts, rows, groups, _ = self.stored.tensors.shape(f"{self.name}{_BLOCKS}")
        return experts, 32 * groups, rows

    def get(self) -> torch.Tensor:
        return self.rows(0, self.shape[0])

    def rows(self, start: int, end: int) -> torch.Tensor:
        return torch.stack([self._expert(expert) for expert in range(start, end)])

    def _expert(self, expert: int) -> torch.Tensor:
        """One matrix, [32 groups, rows], in bfloat16, which holds its numbers exactly."""
        codes = self.stored.tensors.part(f"{self.name}{_BLOCKS}", expert, expert + 1)[0].int()
        exponents = self.stored.tensors.part(f"{self.name}{_SCALES}", expert, expert + 1)[0].int()
        if bool((exponents == _NO_NUMBER).any()):
            raise self.stored.refusal(self.name, "has scales that are no numbers")
        halves = torch.stack([_HALVES[codes & 15], _HALVES[codes >> 4]], -1).flatten(-2)
        values = torch.ldexp(halves, exponents[..., None] - _EXPONENT_OF_ONE)
        return values.flatten(1).t().bfloat16()


def _block(folder: Path, stated: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, as config.json says; None where it says nothing."""
    size = stated.get("weight_block_size")
    if size is None:
        return None
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
        return size[0], size[1]
    what = f"{folder / 'config.json'}: weight_block_size can't be {shown(size)}"
    raise ModelUnavailableError(what, FETCH_AGAIN)
