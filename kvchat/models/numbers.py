"""Whether a model computes numbers at all, and what to do where it computes NaN or infinities."""

from __future__ import annotations

import random

import torch

from kvchat.errors import ModelUnavailableError
from kvchat.models.loaded import LoadedModel
from kvchat.models.probe import LENGTHS
from kvchat.models.weights.mode import WeightsMode


def check_numbers(loaded: LoadedModel) -> None:
    """Raise ModelUnavailableError for a model whose scores of some tokens are no numbers."""
    draw = random.Random(0)  # the same tokens that a probe computes
    tokens = [draw.randrange(loaded.vocab_size) for _ in range(min(LENGTHS[0], loaded.context))]
    if not bool(torch.isfinite(loaded.logits(tokens, loaded.new_state(), len(tokens))).all()):
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
