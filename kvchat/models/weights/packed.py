"""Integer weights as they are kept between runs: one file a model and form, mapped, not read."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file

from kvchat.models.sources.contents import Contents, file_xxh3
from kvchat.models.sources.installed import PACKED_NAME, UNFINISHED, packed_files, packed_stem
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.quantize import Plane

FORMAT_VERSION = 4
"""Rises when what stands in a packed file changes."""
ALIGNMENT = 64
"""Bytes of a cache line: loads that cross one cost a tenth of a token's time. Measured."""
_SUFFIX = ".safetensors"
_LOCK_TIMEOUT_S = 1800.0
_KINDS = {torch.bfloat16: "BF16", torch.uint8: "U8"}
_HEADER_BYTES = (1 << 20) - 8
"""Room for the header of some thousands of tensors, with its length a multiple of ALIGNMENT."""
Parts = Iterable[tuple[str, list[Plane]]]
"""Matrices by name, each made when its turn comes."""


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

    def planes(
        self, mode: WeightsMode, sources: Sequence[Path], make: Callable[[], Parts]
    ) -> dict[str, list[Plane]]:
        """What was kept of `make` for the content of `sources`, mapped from its file; made now, and kept where that can
        be written, if need be: one matrix after the other, none of which stays in memory."""
        name = f"{self.stem}-{mode.value}-{self._key(sources)}"
        kept = self._kept(name)
        if kept is not None:
            return kept
        with self._alone():
            kept = self._kept(name)  # another process may have made it while we waited
            if kept is not None:
                return kept
            try:
                return _mapped(self._write(mode, name, make()))
            except OSError:
                return dict(make())

    def clear(self) -> None:
        """Delete what was made for the model."""
        for path in packed_files(self.folder.parent, self.stem):
            path.unlink(missing_ok=True)

    def _key(self, sources: Sequence[Path]) -> str:
        """Of the bytes of `sources`, this torch and this processor."""
        made_by = [str(FORMAT_VERSION), torch.__version__, torch.backends.cpu.get_cpu_capability()]
        named = [f"{path.name}|{self.contents.identity(path)}" for path in sources]
        return xxhash.xxh3_64_hexdigest("\n".join([*made_by, *named]).encode())

    def _kept(self, name: str) -> dict[str, list[Plane]] | None:
        for path in self.folder.glob(f"{name}-*{_SUFFIX}"):
            with suppress(Exception):  # whatever safetensors says of a damaged file: it is made anew
                if not path.is_symlink() and path.stem == f"{name}-{self.contents.xxh3(path)}":
                    return _mapped(path)
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

    def _write(self, mode: WeightsMode, name: str, parts: Parts) -> Path:
        """Whole or not at all; what another checkpoint, torch, processor or a dead process left is deleted."""
        for leftover in self.folder.glob(f".{self.stem}-*{UNFINISHED}"):
            leftover.unlink(missing_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{self.stem}-", suffix=UNFINISHED)
        os.close(descriptor)
        try:
            _save(parts, Path(temporary))
            path = self.folder / f"{name}-{file_xxh3(Path(temporary))}{_SUFFIX}"
            for outdated in self.folder.glob(f"{self.stem}-{mode.value}-*{_SUFFIX}"):
                outdated.unlink(missing_ok=True)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return path


def _save(parts: Parts, path: Path) -> None:
    """Write a safetensors file, every tensor at a multiple of `ALIGNMENT` bytes: a kernel reads mapped memory as it lies
    there, and every plane's size is such a multiple.

    The header comes last, into room that was left for it: what there is shows only at the end.
    """
    header: dict[str, Any] = {}
    end = 0
    with path.open("wb") as file:
        file.seek(8 + _HEADER_BYTES)
        for key, made in parts:
            for name, tensor in _named(key, made):
                start, end = end, end + tensor.nbytes
                assert tensor.nbytes % ALIGNMENT == 0, f"{name} has {tensor.nbytes} bytes"
                shape = list(tensor.shape)
                header[name] = {"dtype": _KINDS[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
                file.write(tensor.contiguous().view(torch.uint8).numpy().data)
        text = json.dumps(header, separators=(",", ":")).encode().ljust(_HEADER_BYTES)
        assert len(text) == _HEADER_BYTES, f"a header of {len(text)} bytes"
        file.seek(0)
        file.write(_HEADER_BYTES.to_bytes(8, "little") + text)
        file.flush()
        os.fsync(file.fileno())


def _named(key: str, made: Sequence[Plane]) -> Iterator[tuple[str, torch.Tensor]]:
    for number, plane in enumerate(made):
        yield f"{key}.{number}.packed", plane.packed
        yield f"{key}.{number}.scales", plane.scales


def _mapped(path: Path) -> dict[str, list[Plane]]:
    """The planes of each matrix, the higher first."""
    tensors = load_file(path)
    found: dict[str, list[Plane]] = {}
    for name in sorted(name for name in tensors if name.endswith(".packed")):
        key = name.rpartition(".")[0]
        plane = Plane(tensors[name], tensors[f"{key}.scales"])
        found.setdefault(key.rpartition(".")[0], []).append(plane)
    return found
