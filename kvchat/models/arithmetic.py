"""What the bits of a product on a CPU depend on beside its factors: torch, its threads and the processor. Knows no model."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

ROUNDING = 3
"""Rises when the same tokens come to other bits here."""
_CPUINFO = Path("/proc/cpuinfo")
_TOLD = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")


def arithmetic(page: int) -> dict[str, object]:
    """What stands in the fingerprint of KV that is promised to the bit; `page` as in `LoadedModel`.

    Most of it makes no difference most of the time. What differs is kept apart all the same, since nobody proved it.
    """
    return {
        "rounding": ROUNDING,
        "page": page,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
    }


def _processor() -> list[str]:
    """What the system says of the first processor, which decides what kernels a library takes."""
    try:
        first = _CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return [platform.machine(), platform.processor()]
    fields = (line.partition(":") for line in first.splitlines())
    return [f"{name.strip()} {value.strip()}" for name, _, value in fields if name.strip() in _TOLD]
