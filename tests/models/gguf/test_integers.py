from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize
from numpy.typing import NDArray

from kvchat.models.gguf.file import TENSOR_TYPES, BlockType, GgufTensor
from kvchat.models.gguf.integers import tensor_integers
from kvchat.models.weights.quantize import GROUP

SHAPE = (8, 512)
KINDS = {kind.name: kind for kind in TENSOR_TYPES.values()}
FLOAT16_AT = {"Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "Q6_K": (208,), "F16": (), "F32": ()}
"""At which bytes of a block its scales stand, where it is not at 0 and 2."""


def random_blocks(kind: BlockType) -> NDArray[np.uint8]:
    draw = np.random.default_rng(kind.block_bytes)
    num_blocks = math.prod(SHAPE) // kind.block_size
    raw = draw.integers(0, 256, (num_blocks, kind.block_bytes), dtype=np.uint8)
    for start in FLOAT16_AT.get(kind.name, (0, 2)):
        scales = draw.standard_normal((num_blocks, 1)).astype(np.float16)
        raw[:, start : start + 2] = scales.view(np.uint8)
    return raw.reshape(-1)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K"])
def test_the_integers_stand_for_exactly_what_the_file_says(name: str) -> None:
    raw = np.concatenate([np.zeros(7, np.uint8), random_blocks(KINDS[name])])
    stored = tensor_integers(raw, GgufTensor(Path("file"), "x", SHAPE, KINDS[name], 7, len(raw) - 7))
    assert stored is not None
    assert int(stored.codes.max()) < 2**stored.bits
    steps, least = (part.repeat_interleave(GROUP, dim=1) for part in (stored.scale, stored.minimum))
    values = (stored.codes.float() - stored.shift) * steps + least
    expected = dequantize(raw[7:].reshape(SHAPE[0], -1), GGMLQuantizationType[name])
    assert torch.equal(values, torch.from_numpy(expected))


@pytest.mark.parametrize("name", ["Q6_K", "F16", "F32"])
def test_types_without_groups_of_32_have_no_integers(name: str) -> None:
    raw = random_blocks(KINDS[name])
    assert tensor_integers(raw, GgufTensor(Path("file"), "x", SHAPE, KINDS[name], 0, len(raw))) is None
