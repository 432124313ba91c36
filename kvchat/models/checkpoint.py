"""A model's tensors by the names that transformers gives them, one at a time, from whatever files hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from kvchat.models.weights.quantize import Integers

_IGNORED = ("rotary_emb.inv_freq",)


class Checkpoint(Protocol):
    """Stored tensors, of which none is read before it is asked for."""

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""

    @property
    def names(self) -> set[str]:
        """Of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; its values are not read."""

    def get(self, name: str) -> torch.Tensor:
        """A tensor's values: in the floating dtype that they are stored in, or float32."""

    def rows(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        """Some rows of a matrix, [indices, columns], in the same dtype; no others are read."""

    def part(self, name: str, start: int, end: int) -> torch.Tensor:
        """The rows of a matrix from `start` to `end`, in the same dtype, in memory of their own."""

    def is_quantised(self, name: str) -> bool:
        """Whether a tensor is stored in fewer bits than it was trained in."""

    def integers(self, name: str, start: int, end: int) -> Integers | None:
        """The integers of a matrix's rows from `start` to `end`; None where there are none that a kernel takes."""


@dataclass(slots=True)
class SafetensorsCheckpoint:
    """The tensors of a folder's safetensors, from the mapped files."""

    folder: Path
    _files: dict[str, Any] = field(default_factory=dict)
    _paths: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.paths:
            file: Any = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)
            self._paths |= dict.fromkeys(file.keys(), path)

    @property
    def paths(self) -> list[Path]:
        """See Checkpoint."""
        return sorted(self.folder.glob("*.safetensors"))

    @property
    def names(self) -> set[str]:
        """See Checkpoint."""
        return {name for name in self._files if not name.endswith(_IGNORED)}

    def shape(self, name: str) -> tuple[int, ...]:
        """See Checkpoint."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def get(self, name: str) -> torch.Tensor:
        """See Checkpoint."""
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def rows(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        """See Checkpoint."""
        return self.get(name)[indices]

    def part(self, name: str, start: int, end: int) -> torch.Tensor:
        """See Checkpoint."""
        with safe_open(
            self._paths[name], framework="pt"
        ) as file:  # a mapping of its own: its pages go with it
            found: torch.Tensor = file.get_slice(name)[start:end]
        return found.clone()

    def is_quantised(self, name: str) -> bool:
        """See Checkpoint."""
        return False

    def integers(self, name: str, start: int, end: int) -> Integers | None:
        """See Checkpoint."""
        return None
