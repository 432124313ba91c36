"""Whether a model computes numbers at all, and what to do where it computes NaN or infinities."""

from __future__ import annotations

import torch

from kvchat.errors import ModelUnavailableError
from kvchat.models.loaded import LoadedModel
from kvchat.models.weights import WeightsMode

_FEW_TOKENS = (1, 2, 3)


def check_numbers(loaded: LoadedModel) -> None:
    """Raise ModelUnavailableError for a model whose scores of a few tokens are no numbers."""
    tokens = [token % loaded.vocab_size for token in _FEW_TOKENS]
    if not bool(torch.isfinite(loaded.forward(tokens, loaded.new_state())).all()):
        raise no_numbers(loaded)


def no_numbers(loaded: LoadedModel) -> ModelUnavailableError:
    """The error of a model whose scores are NaN or infinite, with what to take instead."""
    dtype = str(loaded.dtype).removeprefix("torch.")
    remedies = {
        torch.float16: "take --dtype bfloat16 or --dtype float32, which hold larger numbers",
        torch.bfloat16: "take --dtype float32",
    }
    remedy = remedies.get(loaded.dtype, "its weights are damaged or of another model, so fetch it again")
    if loaded.weights.mode is not WeightsMode.NATIVE:
        remedy = "take --weights native, or --dtype float32"
    return ModelUnavailableError(
        f"{loaded.name} computes no numbers in {dtype}: its scores are NaN or infinite", remedy
    )
