"""Integer weights as they are kept between runs: one file a model and form, mapped, not read."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file

from kvchat.models.installed import PACKED_NAME, packed_stem
from kvchat.models.quantize import Integers, Plane, dequantize, planes
from kvchat.models.weights import WeightsMode

FORMAT_VERSION = 3
"""Rises when what stands in a packed file changes."""
ALIGNMENT = 64
"""Bytes of a cache line: loads that cross one cost a tenth of a token's time. Measured."""
_KINDS = {torch.bfloat16: "BF16", torch.uint8: "U8"}


@dataclass(frozen=True, slots=True)
class PackedHome:
    """Where the integers of a model are kept: `folder`, in files whose names begin with `stem`."""

    folder: Path
    stem: str

    @classmethod
    def of(cls, root: Path, model_folder: Path) -> PackedHome:
        """The place for a model's folder under the models' root."""
        return cls(root / PACKED_NAME, packed_stem(model_folder))

    def path(self, mode: WeightsMode, sources: Sequence[Path]) -> Path:
        """The file for weights made from `sources` as they are now, by this torch for this processor."""
        stamps = [f"{path.name}|{path.stat().st_size}|{path.stat().st_mtime_ns}" for path in sources]
        made_by = [str(FORMAT_VERSION), torch.__version__, torch.backends.cpu.get_cpu_capability()]
        key = xxhash.xxh3_64_hexdigest("\n".join([*made_by, *stamps]).encode())
        return self.folder / f"{self.stem}-{mode.value}-{key}.safetensors"

    def tensors(
        self, mode: WeightsMode, sources: Sequence[Path], make: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """What was kept of `make`, mapped from its file; made now, and kept where that can be written, if need be."""
        path = self.path(mode, sources)
        if path.exists():
            with suppress(Exception):  # whatever safetensors says of a damaged file: it is made anew
                return load_file(path)
        made = {name: tensor.contiguous() for name, tensor in make().items()}
        with suppress(OSError):
            self._write(mode, path, made)
            return load_file(path)  # mapped, so that what was made need not stay in memory
        return made

    def clear(self, mode: str = "*") -> None:
        """Delete what was made for the model."""
        for path in self.folder.glob(f"{self.stem}-{mode}-*.safetensors"):
            path.unlink(missing_ok=True)

    def _write(self, mode: WeightsMode, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        """Whole or not at all; what another checkpoint, torch or processor left is deleted."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{self.stem}-")
        os.close(descriptor)
        try:
            _save(tensors, Path(temporary))
            self.clear(mode.value)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """A safetensors file, every tensor at a multiple of `ALIGNMENT` bytes: a kernel reads mapped memory as it lies there.

    The format leaves no holes between tensors, so those whose size is no such multiple come last.
    """
    order = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": _KINDS[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def packed(key: str, parts: Sequence[Integers]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a projection of matrices below one another, under names that begin with `key`."""
    yield f"{key}.weight", dequantize(parts)
    for number, plane in enumerate(planes(parts)):
        yield f"{key}.{number}.packed", plane.packed
        yield f"{key}.{number}.scales", plane.scales


def unpacked(tensors: Mapping[str, torch.Tensor], key: str) -> list[Plane]:
    """The planes that stand under `key`, the higher first."""
    return [
        Plane(tensors[f"{key}.{number}.packed"], tensors[f"{key}.{number}.scales"])
        for number in range(2)
        if f"{key}.{number}.packed" in tensors
    ]
