"""What decoding reads: the weights as they are, or integers, and why. Knows no file and no kernel."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ROUNDING = 3
"""Rises when integers of the same file stand for other values."""


class WeightsMode(StrEnum):
    """The form of the weights that a decoded token reads."""

    NATIVE = "native"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class Weights:
    """A mode, and in a few words why it was taken. `is_own`: the integers are those of a GGUF, not made here."""

    mode: WeightsMode
    why: str = ""
    is_own: bool = False

    @property
    def regime(self) -> str:
        """What stands in the fingerprint: KV that one form of the weights made is no KV of another."""
        if self.mode is WeightsMode.NATIVE:
            return self.mode.value
        return f"{self.mode.value} {'of the file' if self.is_own else 'made'}, rounding {ROUNDING}"


NATIVE = Weights(WeightsMode.NATIVE)
