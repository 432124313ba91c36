"""What stands beside a GGUF: its config, tokenizer, template and generation defaults, as transformers names them.

Its weights stay where they are (see checkpoint.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kvchat.models.documents import boundary
from kvchat.models.gguf.families import (
    ModelShape,
    expected_tensors,
    family_of,
    matched_tensors,
    model_config,
)
from kvchat.models.gguf.file import GgufFile
from kvchat.models.gguf.keys import ELSEWHERE
from kvchat.models.gguf.tokenizer import build_tokenizer, end_ids, special_id, tokenizer_settings
from kvchat.models.hush import hushed_transformers
from kvchat.models.progress import Progress


def write_model(gguf: GgufFile, folder: Path, progress: Progress) -> None:
    """Fill `folder` with the small files of a model whose weights stay in the GGUF.

    Raises ModelUnavailableError for an architecture, a tensor or a tokenizer that can't be carried over.
    """
    family = family_of(gguf)
    if family is None:
        progress("importing", 0, 0)
        _write_stock(gguf, folder)
    else:
        with _understood(gguf):
            shape = ModelShape.of(gguf)
            matched_tensors(gguf, expected_tensors(gguf, family, shape))
            config = model_config(gguf, family, shape)
        _write_json(folder / "config.json", config)
    _write_tokenizer(gguf, folder)


def _understood(gguf: GgufFile) -> AbstractContextManager[None]:
    return boundary(f"{gguf.path} can't be imported", ELSEWHERE)


def _write_tokenizer(gguf: GgufFile, folder: Path) -> None:
    with _understood(gguf):
        tokenizer = build_tokenizer(gguf).to_str(pretty=True)
        settings, generation = tokenizer_settings(gguf), _generation_config(gguf)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "tokenizer_config.json", settings)
    template = gguf.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _generation_config(gguf: GgufFile) -> dict[str, Any]:
    ends = end_ids(gguf)
    config: dict[str, Any] = {"eos_token_id": ends[0] if len(ends) == 1 else ends}
    for role, key in (("bos", "bos"), ("pad", "padding")):
        token_id = special_id(gguf, key)
        if token_id is not None:
            config[f"{role}_token_id"] = token_id
    return config if ends else {key: value for key, value in config.items() if key != "eos_token_id"}


def _write_stock(gguf: GgufFile, folder: Path) -> None:
    """The config of a family that runs on transformers' own modules, whose tensors are known to be what those want."""
    with hushed_transformers():
        from kvchat.models.stock.from_gguf import StockGguf

        with _understood(gguf):
            config = StockGguf.of(gguf).config
    _write_json(folder / "config.json", config)
