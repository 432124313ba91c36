"""A GGUF's metadata as its architecture reads it: every key is read by somebody, or the file is refused; knows no tensor.

What bears on the arithmetic and is not understood must not be left out without a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import shown
from kvchat.models.gguf.file import GgufFile

ELSEWHERE = "take the model's safetensors instead"
"""The remedy where a GGUF can't be carried over."""
_BEAR_ON_NOTHING = frozenset(
    (
        "vocab_size",  # the embedding has it
        "tensor_data_layout",
        "rope.scaling.finetuned",
    )
)


class Keys:
    """The keys `<architecture>.*` of one file, each remembered once it was asked for."""

    def __init__(self, gguf: GgufFile) -> None:
        self.gguf = gguf
        self._prefix = f"{gguf.architecture}."
        self._asked = {f"{self._prefix}{key}" for key in _BEAR_ON_NOTHING}

    def value(self, key: str, default: Any = None) -> Any:
        """What the file says, or `default`."""
        self._asked.add(f"{self._prefix}{key}")
        return self.gguf.metadata.get(f"{self._prefix}{key}", default)

    def number(self, key: str, default: float | None = None) -> float:
        """A number that is above or at 0. Raises ModelUnavailableError for anything else."""
        value = self.value(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
            return float(value)
        raise self._wrong(key, value)

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number; where the file has one for each layer they must be the same."""
        value = self.value(key, default)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31:
            return value
        raise self._wrong(key, value)

    def flag(self, key: str, default: bool) -> bool:
        """Yes or no."""
        value = self.value(key, default)
        if isinstance(value, bool):
            return value
        raise self._wrong(key, value)

    def layers(self, key: str) -> list[int] | None:
        """One number for each layer; None where the file has no list."""
        value = self.value(key)
        is_list = isinstance(value, list) and all(isinstance(item, int) for item in value)
        return value if is_list else None

    def expect(self, key: str, *allowed: Any) -> None:
        """Raise ModelUnavailableError unless the file says nothing of a key, or one of the values that are understood."""
        value = self.value(key)
        if value is not None and value not in allowed:
            raise self._wrong(key, value)

    def has_tensor(self, name: str) -> bool:
        """Whether the file holds a tensor."""
        return name in self.gguf.tensors

    def check_all_read(self) -> None:
        """Raise ModelUnavailableError, naming the key, where the file says something of the model that nobody asked for."""
        of_model = [key for key in self.gguf.metadata if key.startswith(self._prefix)]
        unread = [key for key in of_model if key not in self._asked]
        if unread:
            message = f"{self.gguf.path} says {unread[0][:80]}, which kvchat does not understand"
            raise ModelUnavailableError(message, ELSEWHERE)

    def _wrong(self, key: str, value: Any) -> ModelUnavailableError:
        what = "has no" if value is None else f"can't have {shown(value)} as"
        return ModelUnavailableError(f"{self.gguf.path} {what} {self._prefix[:60]}{key}", ELSEWHERE)


def stored_dtype(gguf: GgufFile) -> str:
    """The type that holds all of a file's values exactly."""
    types = {tensor.type.name for tensor in gguf.tensors.values()}
    if types <= {"F32", "BF16"} and "BF16" in types:
        return "bfloat16"
    return "float16" if types <= {"F32", "F16"} and "F16" in types else "float32"


def windows(keys: Keys, num_layers: int, *, period: int, default: Sequence[bool] | None = None) -> list[str]:
    """Transformers' `layer_types`: of each `period` layers the last one sees everything, unless the file says otherwise."""
    pattern = keys.value("attention.sliding_window_pattern")
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        period, pattern = max(pattern, 1), None
    slides = pattern or default or [(layer + 1) % period != 0 for layer in range(num_layers)]
    if len(slides) != num_layers:
        raise ModelUnavailableError(
            f"{keys.gguf.path}: its sliding windows are not those of its layers", ELSEWHERE
        )
    return ["sliding_attention" if slide else "full_attention" for slide in slides]
