from __future__ import annotations

import torch

from kvchat.models.stock.arena import Arena
from tests.families.shrink import random_tokens, tiny_random_model


def test_where_memory_grows_by_steps_a_layer_with_a_window_keeps_its_history() -> None:
    model = tiny_random_model("gemma2")
    arena = Arena(
        model.config, capacity=64, device=torch.device("cuda")
    )  # its buffers lie where its model's keys do
    tokens = random_tokens(40)
    arena.reserve(len(tokens))
    with torch.inference_mode():
        model(input_ids=torch.tensor([tokens]), past_key_values=arena.cache, use_cache=True)
    arena.advance(tokens)
    arena.release()
    assert (arena.first_held, arena.excess, arena.keepable(13)) == (0, 0, 13)
