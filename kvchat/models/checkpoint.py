"""A model's tensors by the names that transformers gives them, one at a time, from whatever files hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

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


@dataclass(slots=True)
class SafetensorsCheckpoint:
    """The tensors of a folder's safetensors, from the mapped files."""

    folder: Path
    _files: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.paths:
            file: Any = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)

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
