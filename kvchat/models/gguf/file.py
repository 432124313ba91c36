"""Reads a GGUF file's header and tensors and distrusts every number in it; knows no torch, no transformers.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import difflib
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import POINTER_BYTES, boundary, is_pointer, shown
from kvchat.models.gguf.belongings import refuse_parts

_FETCH_AGAIN = "fetch the file again"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_MAX_ELEMENTS = 1 << 23  # of an array in the metadata: the largest are vocabularies and their merges
_MAX_ALIGNMENT = 1 << 16
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class BlockType:
    """How a tensor's numbers are stored: `block_bytes` for every `block_size` of them."""

    name: str
    block_size: int
    block_bytes: int


TENSOR_TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
}
"""The tensor types that kvchat reads, by their number in the file."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies in the file `path`. `shape` is in torch order; `start` and `num_bytes` are in bytes."""

    path: Path
    name: str
    shape: tuple[int, ...]
    type: BlockType
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Unread:
    """An array of the metadata that was passed over: nothing is known but its length."""

    length: int

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file's header: metadata by key (arrays as lists), tensors by name in file order. Of a model in several parts
    it is that of all `paths`, and `path` is the first of them."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor] = field(repr=False)
    paths: tuple[Path, ...] = ()

    @property
    def architecture(self) -> str:
        """The model family in llama.cpp's spelling, such as `llama`."""
        return str(self.metadata["general.architecture"])

    def number(self, key: str, default: float | None = None) -> float:
        """The metadata value `<architecture>.<key>`. Raises ModelUnavailableError unless it is above 0."""
        value = self.metadata.get(f"{self.architecture[:60]}.{key}", default)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
            return value
        what = "has no" if value is None else f"can't have {shown(value)} as"
        raise ModelUnavailableError(f"{self.path} {what} {self.architecture[:60]}.{key}", _FETCH_AGAIN)

    def integer(self, key: str, default: int | None = None) -> int:
        """The same, for a whole number."""
        value = self.number(key, default)
        if isinstance(value, int):
            return value
        raise ModelUnavailableError(
            f"{self.path}: {self.architecture}.{key} can't be {shown(value)}", _FETCH_AGAIN
        )


def read_file(path: Path, *, has_texts: bool = True) -> GgufFile:
    """The header of one file, which may be a part of a model; see `parts.read_gguf`."""
    if not path.exists():
        raise ModelUnavailableError(f"there is no file {path}", _spelling(path))
    with boundary(f"{path} is no readable GGUF file", _FETCH_AGAIN):
        if not path.is_file():  # opening a FIFO would wait for ever
            raise ValueError("it is no regular file")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if is_pointer(data[:POINTER_BYTES]):
                raise ModelUnavailableError(
                    f"{path} is a pointer of Git LFS and not the file itself", "fetch it with git lfs pull"
                )
            return _read_header(path, _Cursor(data, has_texts=has_texts))


def is_gguf(path: Path) -> bool:
    """Whether a file is one, whatever its name."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _spelling(path: Path) -> str:
    """What to do about a file that is not there."""
    names = [other.name for other in path.parent.glob("*.gguf")]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.with_name(close[0])}?" if close else "check the path"


class _Cursor:
    """Reads little-endian values one after another, and never past the end."""

    def __init__(self, data: mmap.mmap, *, has_texts: bool = True) -> None:
        self._data = data
        self._has_texts = has_texts
        self.size = len(data)
        self.position = 0

    def take(self, num_bytes: int) -> bytes:
        end = self.position + num_bytes
        if end > self.size:
            raise ValueError("it ends too early")
        chunk = self._data[self.position : end]
        self.position = end
        return chunk

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{code}", self.take(struct.calcsize(f"<{code}") * count))

    def string(self) -> str:
        return self.take(self.numbers("Q")[0]).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"a value of the unknown type {kind}")
        element, count = self.numbers("I")[0], self.numbers("Q")[0]
        if count > _MAX_ELEMENTS:
            raise ValueError(f"an array of {count} elements")
        if element in _SCALARS:
            return list(self.numbers(_SCALARS[element], count))
        if element != _STRING:
            raise ValueError(f"an array of the unknown type {element}")
        return self._strings(count) if self._has_texts else self._pass_over(count)

    def _pass_over(self, count: int) -> Unread:
        """Go on behind so many strings."""
        data, position, unpack = self._data, self.position, struct.Struct("<Q").unpack_from
        last = self.size - 8
        for _ in range(count):
            if position > last:
                raise ValueError("it ends too early")
            position += 8 + unpack(data, position)[0]
        if position > self.size:
            raise ValueError("it ends too early")
        self.position = position
        return Unread(count)

    def _strings(self, count: int) -> list[str]:
        """What `string` reads, `count` times, in a loop without calls: a vocabulary has 100,000 of them."""
        if count * 8 > self.size - self.position:
            raise ValueError("it ends too early")
        data, position, unpack = self._data, self.position, struct.Struct("<Q").unpack_from
        strings = []
        for _ in range(count):
            start = position + 8
            if start > self.size:
                raise ValueError("it ends too early")
            position = start + unpack(data, position)[0]
            if position > self.size:
                raise ValueError("it ends too early")
            strings.append(data[start:position].decode("utf-8"))
        self.position = position
        return strings


def _read_header(path: Path, cursor: _Cursor) -> GgufFile:
    if cursor.take(4) != _MAGIC:
        raise ValueError("it does not start with GGUF")
    version = cursor.numbers("I")[0]
    if version not in _VERSIONS:
        raise ValueError(f"version {version}, not 2 or 3")
    num_tensors, num_keys = cursor.numbers("Q", 2)
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.numbers("I")[0])
    refuse_parts(path, metadata)
    is_later_part = metadata.get("split.no", 0) != 0  # which need not say again what the first one says
    if not isinstance(metadata.get("general.architecture"), str) and not is_later_part:
        raise ValueError("it names no architecture")
    tensors = _read_tensors(path, cursor, num_tensors, metadata)
    refuse_parts(path, metadata, tensors)
    return GgufFile(path, metadata, tensors, (path,))


def _read_tensors(
    path: Path, cursor: _Cursor, count: int, metadata: Mapping[str, Any]
) -> dict[str, GgufTensor]:
    entries = []
    for _ in range(count):
        name, num_dims = cursor.string(), cursor.numbers("I")[0]
        if not 1 <= num_dims <= _MAX_DIMS:
            raise ValueError(f"tensor {shown(name)} has {num_dims} dimensions")
        shape = tuple(reversed(cursor.numbers("Q", num_dims)))
        entries.append((name, shape, cursor.numbers("I")[0], cursor.numbers("Q")[0]))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= _MAX_ALIGNMENT:
        raise ValueError(f"an alignment of {alignment}")
    origin = -(-cursor.position // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        tensors[name] = _placed(path, name, shape, _tensor_type(path, kind), origin + offset)
        if tensors[name].start + tensors[name].num_bytes > cursor.size:
            raise ValueError(f"it ends before the end of tensor {shown(name)}")
    if len(tensors) != count:
        raise ValueError("two tensors have one name")
    return tensors


def _tensor_type(path: Path, kind: int) -> BlockType:
    if kind in TENSOR_TYPES:
        return TENSOR_TYPES[kind]
    from gguf import GGMLQuantizationType

    name = next((item.name for item in GGMLQuantizationType if item.value == kind), f"number {kind}")
    known = ", ".join(item.name for item in TENSOR_TYPES.values())
    raise ModelUnavailableError(f"{path} holds tensors of type {name}", f"take a file with {known}")


def _placed(path: Path, name: str, shape: tuple[int, ...], kind: BlockType, start: int) -> GgufTensor:
    if shape[-1] % kind.block_size or not math.prod(shape):
        raise ValueError(f"tensor {shown(name)} of type {kind.name} can't have the shape {list(shape)}")
    return GgufTensor(path, name, shape, kind, start, math.prod(shape) // kind.block_size * kind.block_bytes)
