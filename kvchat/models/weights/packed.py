"""Integer weights as they are kept between runs: one file a model and form, mapped, not read."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file

from kvchat.models.sources.contents import Contents
from kvchat.models.sources.installed import PACKED_NAME, UNFINISHED, packed_files, packed_stem
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.quantize import Integers, Plane, dequantize, planes

FORMAT_VERSION = 3
"""Rises when what stands in a packed file changes."""
ALIGNMENT = 64
"""Bytes of a cache line: loads that cross one cost a tenth of a token's time. Measured."""
_SUFFIX = ".safetensors"
_LOCK_TIMEOUT_S = 1800.0
_KINDS = {torch.bfloat16: "BF16", torch.uint8: "U8"}


@dataclass(frozen=True, slots=True)
class PackedHome:
    """Where the integers of a model are kept: `folder`, in files whose names begin with `stem`.

    A file's name ends with the hash of its bytes, which is proved before they are used.
    """

    folder: Path
    stem: str
    contents: Contents

    @classmethod
    def of(cls, root: Path, model_folder: Path) -> PackedHome:
        """The place for a model's folder under the models' root."""
        return cls(root / PACKED_NAME, packed_stem(model_folder), Contents(root))

    def tensors(
        self, mode: WeightsMode, sources: Sequence[Path], make: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """What was kept of `make` for the content of `sources`, mapped from its file; made now, and kept where that can
        be written, if need be."""
        name = f"{self.stem}-{mode.value}-{self._key(sources)}"
        kept = self._kept(name)
        if kept is not None:
            return kept
        with self._alone():
            kept = self._kept(name)  # another process may have made it while we waited
            if kept is not None:
                return kept
            made = {key: tensor.contiguous() for key, tensor in make().items()}
            with suppress(OSError):
                return load_file(
                    self._write(mode, name, made)
                )  # mapped: what was made need not stay in memory
        return made

    def clear(self) -> None:
        """Delete what was made for the model."""
        for path in packed_files(self.folder.parent, self.stem):
            path.unlink(missing_ok=True)

    def _key(self, sources: Sequence[Path]) -> str:
        """Of the bytes of `sources`, this torch and this processor."""
        made_by = [str(FORMAT_VERSION), torch.__version__, torch.backends.cpu.get_cpu_capability()]
        named = [f"{path.name}|{self.contents.identity(path)}" for path in sources]
        return xxhash.xxh3_64_hexdigest("\n".join([*made_by, *named]).encode())

    def _kept(self, name: str) -> dict[str, torch.Tensor] | None:
        for path in self.folder.glob(f"{name}-*{_SUFFIX}"):
            with suppress(Exception):  # whatever safetensors says of a damaged file: it is made anew
                if not path.is_symlink() and path.stem == f"{name}-{self.contents.xxh3(path)}":
                    return load_file(path)
        return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the right to write the model's files, where the file system has such rights."""
        from filelock import FileLock, Timeout

        with ExitStack() as held:
            with suppress(OSError, NotImplementedError, Timeout):
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                held.enter_context(FileLock(self.folder / f".{self.stem}.lock", timeout=_LOCK_TIMEOUT_S))
            yield

    def _write(self, mode: WeightsMode, name: str, tensors: dict[str, torch.Tensor]) -> Path:
        """Whole or not at all; what another checkpoint, torch, processor or a dead process left is deleted."""
        for leftover in self.folder.glob(f".{self.stem}-*{UNFINISHED}"):
            leftover.unlink(missing_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{self.stem}-", suffix=UNFINISHED)
        os.close(descriptor)
        try:
            path = self.folder / f"{name}-{_save(tensors, Path(temporary))}{_SUFFIX}"
            for outdated in self.folder.glob(f"{self.stem}-{mode.value}-*{_SUFFIX}"):
                outdated.unlink(missing_ok=True)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return path


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    """Write a safetensors file, every tensor at a multiple of `ALIGNMENT` bytes: a kernel reads mapped memory as it lies
    there. Returns the xxh3-128 of its bytes, as hex.

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
    digest = xxhash.xxh3_128()
    with path.open("wb") as file:
        parts: list[Any] = [tensors[name].view(torch.uint8).numpy().data for name in order]
        for part in (len(text).to_bytes(8, "little") + text, *parts):
            file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


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
