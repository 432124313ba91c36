"""Is this folder a chat model? Looks at names, sizes and safetensors headers, before anything heavy loads it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import (
    FETCH_AGAIN,
    LARGE_BYTES,
    POINTER_BYTES,
    boundary,
    is_pointer,
    read_object,
    read_object_if_any,
    shown,
)
from kvchat.models.schema import Stored, check, check_config, several, text, whole

_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_MAX_FILE_BYTES = 1 << 50
_MAX_DIMS = 16
_TIMES_SMALLER = 10  # than a model is what belongs to one
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx")


def check_folder(folder: Path) -> None:
    """Raise ModelUnavailableError, naming what is missing or damaged, unless transformers can load `folder`."""
    with boundary(f"{folder} can't be read", FETCH_AGAIN):
        _check_files(folder)


def _check_files(folder: Path) -> None:
    path = folder / "config.json"
    try:
        config = read_object(path)
    except FileNotFoundError as error:
        raise _no_config(folder) from error
    if not config.get("model_type"):
        raise ModelUnavailableError(f"{path} names no model_type", FETCH_AGAIN)
    check(config, {"model_type": text, "architectures": several(text), "auto_map": _is_object}, path)
    check_config(config, _stored(folder), path)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelUnavailableError(f"{folder} has no tokenizer", "put the model's tokenizer.json there")


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _no_config(folder: Path) -> ModelUnavailableError:
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs and not any(folder.glob("*.safetensors")):
        return ModelUnavailableError(
            f"{folder} holds GGUF files, which are named one by one",
            f"pass the one you want: -m {_likeliest(ggufs)}",
        )
    return ModelUnavailableError(
        f"{folder} is no model: it has no config.json",
        "pass the folder that holds config.json and *.safetensors",
    )


def _likeliest(ggufs: Sequence[Path]) -> Path:
    """The first file that may be a whole model: what belongs to one is far smaller."""
    sizes = {path: path.stat().st_size if path.is_file() else 0 for path in ggufs}
    least = max(sizes.values()) / _TIMES_SMALLER
    whole = [path for path in ggufs if sizes[path] >= least and "mmproj" not in path.name.lower()]
    return (whole or ggufs)[0]


def _stored(folder: Path) -> Stored:
    shapes = tensor_shapes(folder)
    return Stored(len(shapes), max((size for shape in shapes.values() for size in shape), default=0))


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors by name. Raises ModelUnavailableError when a weights file is missing or damaged."""
    return {name: shape for path in weight_files(folder) for name, shape in check_safetensors(path).items()}


def tensor_dtypes(folder: Path) -> dict[str, str]:
    """How all tensors are stored, by name, as safetensors calls it; without weights files there are none."""
    dtypes: dict[str, str] = {}
    for path in folder.glob("*.safetensors"):
        with boundary(f"{path} is damaged", FETCH_AGAIN), path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(header_bytes, _MAX_HEADER_BYTES)))
            dtypes |= {name: str(entry["dtype"]) for name, entry in header.items() if name != "__metadata__"}
    return dtypes


def has_chat_template(folder: Path) -> bool:
    """Whether the model brings a chat template, in any of the places where transformers looks."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    return bool(read_object_if_any(folder / "tokenizer_config.json").get("chat_template"))


def check_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors by name.

    Raises ModelUnavailableError unless its header is sane and the file as long as it says.
    """
    with boundary(f"{path} is damaged", "fetch the file again"):
        size = path.stat().st_size
        if not path.is_file():  # opening a FIFO would wait for ever
            raise ValueError("it is no regular file")
        with path.open("rb") as file:
            start = file.read(8)
            if is_pointer(start + file.read(POINTER_BYTES)):
                raise ModelUnavailableError(
                    f"{path} is a pointer of Git LFS and not the file itself", "fetch it with git lfs pull"
                )
            header_bytes = int.from_bytes(start, "little")
            if size < 8 or header_bytes > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError("its header does not fit")
            file.seek(8)
            header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        ends = [_end_of(name, entry) for name, entry in header.items()]
        end = max(ends, default=0)
        if 8 + header_bytes + end != size:
            raise ValueError(f"it should have {8 + header_bytes + end} bytes and has {size}")
        return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _end_of(name: str, entry: dict[str, Any]) -> int:
    start, end = entry["data_offsets"]
    shape, dtype = entry["shape"], entry["dtype"]
    is_size = whole(0, _MAX_FILE_BYTES)
    if not (is_size(start) and is_size(end) and start <= end):
        raise ValueError(f"tensor {shown(name)} has no sane place")
    if not (
        isinstance(dtype, str)
        and isinstance(shape, list)
        and len(shape) <= _MAX_DIMS
        and all(map(is_size, shape))
    ):
        raise ValueError(f"tensor {shown(name)} has no sane shape")
    if math.prod(shape) > 8 * (end - start):
        raise ValueError(f"tensor {shown(name)} is larger than its bytes")
    return int(end)


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files; with an index, all those that it names."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in _indexed(folder, index)]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise _no_weights(folder)
    return files


def _indexed(folder: Path, index: Path) -> list[str]:
    weight_map = read_object(index, LARGE_BYTES).get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    strange = [name for name in files if not _is_plain_name(name)]
    if strange:
        raise ModelUnavailableError(f"{index} names a weights file {shown(strange[0])}", FETCH_AGAIN)
    names = sorted(set(files))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        what = (
            f"{len(missing)} of {len(names)} weight files, such as {missing[0]}" if missing else "its weights"
        )
        raise ModelUnavailableError(f"{folder} lacks {what}", FETCH_AGAIN)
    return names


def _is_plain_name(name: object) -> bool:
    """Of a file in the very folder: what an index says must not lead out of it."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not set("/\\\0") & set(name)
        and len(name) < 256
    )


def _no_weights(folder: Path) -> ModelUnavailableError:
    message = f"{folder} holds no *.safetensors"
    if any(next(folder.glob(pattern), None) for pattern in _OTHER_WEIGHTS):
        remedy = "convert its weights: load them with transformers and call save_pretrained"
        return ModelUnavailableError(message, remedy)
    gguf = next(folder.glob("*.gguf"), None)
    return ModelUnavailableError(message, f"pass the file itself: -m {gguf}" if gguf else FETCH_AGAIN)
