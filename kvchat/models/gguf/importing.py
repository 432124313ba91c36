"""A GGUF file -> a folder of safetensors, config and tokenizer that transformers loads; knows no other folder.

The values are those of transformers' own dequantisation, bit by bit, taken without its detours.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import boundary
from kvchat.models.gguf.families import (
    ModelShape,
    Target,
    expected_tensors,
    family_of,
    matched_tensors,
    model_config,
)
from kvchat.models.gguf.file import GgufFile, GgufTensor, tensor_values
from kvchat.models.gguf.keys import ELSEWHERE
from kvchat.models.gguf.tokenizer import build_tokenizer, end_ids, special_id, tokenizer_settings
from kvchat.models.hush import hushed_transformers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`, from time to time; `total` 0 means unknown."""


def write_model(gguf: GgufFile, folder: Path, progress: Progress) -> None:
    """Fill `folder` with everything that `AutoModelForCausalLM.from_pretrained(folder)` wants.

    Raises ModelUnavailableError for an architecture, a tensor or a tokenizer that can't be carried over.
    """
    if gguf.metadata.get("split.count", 0) not in (0, 1):
        raise ModelUnavailableError(
            f"{gguf.path} is one of several parts", "join them with llama-gguf-split --merge"
        )
    family = family_of(gguf)
    if family is None:
        progress("importing", 0, 0)
        _write_stock(gguf, folder, progress)
    else:
        with _understood(gguf):
            shape = ModelShape.of(gguf)
            targets = matched_tensors(gguf, expected_tensors(gguf, family, shape))
            config = model_config(gguf, family, shape)
        _check_space(folder, targets)
        _write_json(folder / "config.json", config)
        _write_weights(gguf, targets, folder / "model.safetensors", progress)
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


def _write_weights(
    gguf: GgufFile, targets: list[tuple[GgufTensor, Target]], path: Path, progress: Progress
) -> None:
    """Write model.safetensors tensor by tensor, so that a large model never stands in memory as a whole."""
    stored = {target.name: _stored(tensor) for tensor, target in targets}
    shapes = {target.name: target.shape for _, target in targets}
    header = _header({name: (kind, shapes[name], width) for name, (kind, width) in stored.items()})
    with path.open("xb") as file:
        file.write(header)
        for values in _converted(gguf, targets, progress):
            file.write(values.data.cast("B"))


def _header(tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    """What a safetensors file begins with, for tensors by name: their type, their shape, bytes a value."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (kind, shape, width) in tensors.items():
        start, end = end, end + prod(shape) * width
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check_space(folder: Path, targets: list[tuple[GgufTensor, Target]]) -> None:
    _check_room(folder, sum(prod(target.shape) * _stored(tensor)[1] for tensor, target in targets))


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        remedy = "free some space or set KVCHAT_MODELS to another folder"
        raise ModelUnavailableError(
            f"the import needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} are free", remedy
        )


def _stored(tensor: GgufTensor) -> tuple[str, int]:
    """The safetensors type that holds a tensor's values exactly, and its bytes a value."""
    return (tensor.type.name, 2) if tensor.type.name in ("F16", "BF16") else ("F32", 4)


def _converted(
    gguf: GgufFile, targets: list[tuple[GgufTensor, Target]], progress: Progress
) -> Iterator[NDArray[Any]]:
    import numpy as np

    data = np.memmap(gguf.path, dtype=np.uint8, mode="r")
    total, done = sum(tensor.num_bytes for tensor, _ in targets), 0
    for tensor, target in targets:
        progress("importing", done, total)
        values = tensor_values(data, tensor)
        yield np.ascontiguousarray(_grouped(values, target.interleaved_heads))
        done += tensor.num_bytes
    progress("importing", total, total)


def _grouped(values: NDArray[np.generic], heads: int) -> NDArray[Any]:
    """Undo llama.cpp's order of Q and K rows: rotated pairs lie side by side there, in two halves here."""
    if not heads:
        return values
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _write_stock(gguf: GgufFile, folder: Path, progress: Progress) -> None:
    """The files of a family that runs on transformers' own modules."""
    with hushed_transformers():
        from kvchat.models.stock.from_gguf import StockGguf

        with _understood(gguf):
            model = StockGguf.of(gguf)
        kind, width = {"float16": ("F16", 2), "bfloat16": ("BF16", 2)}.get(model.dtype, ("F32", 4))
        _check_room(folder, sum(prod(shape) for shape in model.shapes.values()) * width)
        _write_json(folder / "config.json", model.config)
        with (folder / "model.safetensors").open("xb") as file:
            file.write(_header({name: (kind, shape, width) for name, shape in model.shapes.items()}))
            for done, values in enumerate(model.arrays()):
                progress("importing", done, len(model.shapes))
                file.write(values.data.cast("B"))
