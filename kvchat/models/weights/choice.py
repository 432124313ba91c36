"""Whether decoding reads integers here, of how many bits, and why. Knows no file."""

from __future__ import annotations

import torch

from kvchat.errors import UsageError
from kvchat.models.weights.mode import Weights, WeightsMode
from kvchat.models.weights.order import block_rows

INTEGER_SHARE = 0.65
"""Bytes of integers for a byte of bfloat16, at most: two planes of 4 bits with their scales."""
_TAKEN = (torch.bfloat16, torch.float32)


def why_no_integers(device: torch.device, dtype: torch.dtype) -> str:
    """Why integer weights can't be used here, in a few words; empty where they can."""
    if device.type != "cpu":
        return f"the integer kernels are for a CPU, not for {device.type}"
    if dtype not in _TAKEN:
        return (
            f"integers are multiplied with bfloat16 or float32, not with {str(dtype).removeprefix('torch.')}"
        )
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return "this processor has no fast integer kernel"
    return "" if block_rows() else "this torch packs integers in an unknown order"


def choose_weights(wanted: str, *, obstacle: str, is_own: bool) -> Weights:
    """`auto` is integers unless there is an `obstacle`: a GGUF's own where they are (`is_own`), else 8 bits.

    Raises UsageError for integers that were asked for and can't be.
    """
    if wanted == WeightsMode.NATIVE.value:
        return Weights(WeightsMode.NATIVE, "asked for")
    if wanted != "auto":
        if obstacle:
            raise UsageError(f"--weights {wanted} can't be used: {obstacle}", "take --weights auto")
        return Weights(WeightsMode(wanted), "asked for", is_own=is_own)
    if obstacle:
        return Weights(WeightsMode.NATIVE, obstacle)
    if not is_own:
        return Weights(WeightsMode.INT8, "decoding reads fewer bytes")
    return Weights(WeightsMode.INT8, "the GGUF's own integers", is_own=True)
