"""GGUF files that hold a vocabulary and nothing else, and what llama.cpp makes of a text with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf

LETTERS = [
    "\u2581",
    *"etaoinshrdluw",
    "\n",
    "\n\n",
    "\n\n\n",
    "th",
    "the",
    "in",
    "an",
    "\u2581the",
    "\u2581an",
    "or",
]
LETTER_MERGES = ["\n\n \n", "\n \n\n", "\n \n", "t h", "th e", "i n", "a n", "\u2581 the", "\u2581 an", "o r"]


def write_vocabulary(path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write `metadata`'s tokenizer keys; values None are left out."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_block_count(1)
    for key, value in metadata.items():
        if not key.startswith("tokenizer.") or value is None or value == []:
            continue
        add_value(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a key with the type that llama.cpp's converter gives it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def letters(pre: str) -> dict[str, Any]:
    """A small vocabulary over letters, with bytes for all others, as Gemma 4 has it."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(LETTERS)],
        "tokenizer.ggml.merges": LETTER_MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@contextlib.contextmanager
def llama_cpp_vocabulary(path: Path) -> Iterator[Any]:
    """llama.cpp's own reading of a file, where llama-cpp-python is installed."""
    import llama_cpp

    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    try:
        yield model
    finally:
        model.close()
