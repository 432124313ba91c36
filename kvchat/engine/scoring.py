"""What the model thought of a token that was chosen, from its logits. Chooses nothing."""

from __future__ import annotations

import torch

from kvchat.engine.request import Score


def score_of(logits: torch.Tensor, token: int, num_top: int) -> Score:
    """The score of a token by [vocab] in float32, and those of the `num_top` likeliest."""
    shares = logits.log_softmax(-1)
    values, ids = shares.topk(min(num_top, len(shares)))
    return Score(float(shares[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
