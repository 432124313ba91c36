"""Tiny GGUFs of every architecture, as llama.cpp's converter lays them out, with weights made from a seed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.models.gguf.vocabularies import add_value

NUM_TOKENS = 128
TOKENS = (1, *((7 * index * index + 3 * index + 11) % 94 + 5 for index in range(1, 40)))
"""More than the windows of the tiny models hold."""


def write_from_record(path: Path, record: Mapping[str, Any]) -> Path:
    """Write a file of a record: its metadata, a vocabulary, and numbers for each of its tensors' shapes."""
    writer = gguf.GGUFWriter(str(path), record["architecture"])
    for key, value in {**record["metadata"], **_vocabulary()}.items():
        add_value(writer, key, value)
    given = record.get("values", {})
    for name, shape in record["tensors"].items():
        values = np.array(given[name], np.float32) if name in given else _numbers(name, shape)
        writer.add_tensor(name, np.ascontiguousarray(values.reshape(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _numbers(name: str, shape: list[int]) -> NDArray[np.float32]:
    """Numbers that matter: norms about 1, decays below 0, and matrices that neither explode nor vanish."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("ssm_a"):
        return -np.exp(0.3 * drawn)
    if "norm" in name and not name.endswith("bias"):
        return 1 + 0.1 * drawn
    return 0.1 * drawn if len(shape) == 1 else drawn * np.float32(1.5 / np.sqrt(shape[-1]))


def _vocabulary() -> dict[str, Any]:
    letters = ["he", *(chr(code) for code in range(33, 127)), "\u0120", "\u010a"]
    tokens = ["<|endoftext|>", "<s>", "</s>", *letters]
    tokens += [f"<|unused_{index}|>" for index in range(NUM_TOKENS - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            3 if token.startswith("<") and len(token) > 1 else 1 for token in tokens
        ],
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
