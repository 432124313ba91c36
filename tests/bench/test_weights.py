from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvchat.bench.weights import measure
from kvchat.config import Config
from tests.tiny import tiny_folder

WIDE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "head_dim": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def test_more_bits_are_nearer_to_the_weights_and_bfloat16_is_nearest(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "wide", max_position_embeddings=2048, **WIDE)
    found = {}
    for mode in ("int8", "int4"):
        config = make_config(model__name=str(folder), model__weights=mode)
        for row in measure(config, num_tokens=300):
            found[row.how] = row
            assert row.positions == 300
            assert 0 <= row.kl <= row.kl_max
    assert found["native bfloat16, prefill"].kl < found["int8, decode"].kl < found["int4, decode"].kl
    assert found["int8, prefill"].top1 > found["int4, prefill"].top1
    assert found["int8, decode against prefill"].kl < found["int8, decode"].kl
    assert found["int8, prefill"].reference == found["int4, decode"].reference > 1
    assert found["int8, prefill"].to_json()["bench"] == "weights"
