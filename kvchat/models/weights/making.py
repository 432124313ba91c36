"""A checkpoint's matrices -> planes, some rows at a time: the file's own integers where it has them, else the nearest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvchat.models.checkpoint import Checkpoint
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.quantize import (
    Integers,
    Plane,
    below_one_another,
    num_plane_bytes,
    planes,
    quantize,
)

_NUMBERS_AT_ONCE = 1 << 22
_ROWS_MULTIPLE = 64


def has_integers(checkpoint: Checkpoint) -> bool:
    """Whether any of a checkpoint's tensors is stored as integers."""
    return any(map(checkpoint.is_quantised, checkpoint.names))


def matrix_bits(checkpoint: Checkpoint, name: str, mode: WeightsMode) -> int:
    """Bits of a code, 4 or 8, of a matrix that is to have integers of `mode`."""
    return 4 if _integers(checkpoint, name, mode, 0, 1).bits == 4 else 8


def matrix_bytes(checkpoint: Checkpoint, name: str, mode: WeightsMode) -> int:
    """Bytes of a matrix's planes."""
    some = _integers(checkpoint, name, mode, 0, 1)
    return num_plane_bytes(*checkpoint.shape(name), bits=some.bits, groups=some.scale.shape[1])


def matrix_planes(checkpoint: Checkpoint, names: Sequence[str], mode: WeightsMode) -> list[Plane]:
    """The planes of matrices below one another, all of as many bits."""
    return below_one_another([planes(part) for name in names for part in _parts(checkpoint, name, mode)])


def _parts(checkpoint: Checkpoint, name: str, mode: WeightsMode) -> Iterator[Integers]:
    rows, columns = checkpoint.shape(name)
    step = max(1, _NUMBERS_AT_ONCE // columns // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
    for start in range(0, rows, step):
        yield _integers(checkpoint, name, mode, start, min(start + step, rows))


def _integers(checkpoint: Checkpoint, name: str, mode: WeightsMode, start: int, end: int) -> Integers:
    own = checkpoint.integers(name, start, end)
    if own is not None:
        return own
    wanted = (
        WeightsMode.INT8 if checkpoint.is_quantised(name) else mode
    )  # 4 bits of the same would be too few
    return quantize(checkpoint.part(name, start, end), wanted)
