"""Writes tests/fixtures/cuts.json: what llama.cpp's tokenizer gives for our texts, for each name of `tokenizer.ggml.pre`.

usage: python -m tests.models.gguf.record_cuts EMBEDDED.gguf   (needs llama-cpp-python)
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import xxhash

from kvchat.models.gguf.cuts import CUTS
from kvchat.models.gguf.parts import read_gguf
from tests.models.gguf.texts import TEXTS
from tests.models.gguf.vocabularies import letters, llama_cpp_vocabulary, write_vocabulary

FIXTURE = Path(__file__).parents[2] / "fixtures" / "cuts.json"
ABORTS = {
    "whitespace": "llama.cpp aborts on a space where its model is not `whitespace` too, which is refused"
}
"""Names that llama.cpp itself can't read in a vocabulary that has merges."""


def short(ids: Sequence[int]) -> str:
    """Four letters that stand for some ids."""
    return xxhash.xxh3_64_hexdigest(" ".join(map(str, ids)).encode())[:4]


def _record(path: Path) -> dict[str, str]:
    embedded = dict(read_gguf(path).metadata)
    recorded = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, cut in CUTS.items():
            if name in ABORTS:
                continue
            metadata = embedded | {"tokenizer.ggml.pre": name} if cut.is_bytes else letters(name)
            with llama_cpp_vocabulary(write_vocabulary(Path(folder) / "vocabulary.gguf", metadata)) as model:
                given = (model.tokenize(text.encode(), add_bos=False, special=False) for text in TEXTS)
                recorded[name] = "".join(map(short, given))
    return recorded


if __name__ == "__main__":
    by_name = _record(Path(sys.argv[1]))
    groups: dict[str, list[str]] = {}
    for pre, shorts in by_name.items():
        groups.setdefault(shorts, []).append(pre)
    lines = [f"{json.dumps(' '.join(names))}: {json.dumps(shorts)}" for shorts, names in groups.items()]
    FIXTURE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
