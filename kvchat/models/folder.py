"""Is this folder a chat model? Looks at names, sizes and safetensors headers, before anything heavy loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvchat.errors import ModelUnavailableError

_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
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
    try:
        config = _read_json(folder / "config.json")
    except FileNotFoundError as error:
        remedy = "pass the folder that holds config.json and *.safetensors"
        raise ModelUnavailableError(f"{folder} is no model: it has no config.json", remedy) from error
    if "model_type" not in config:
        raise ModelUnavailableError(f"{folder / 'config.json'} names no model_type", "fetch the model again")
    for weights in _weight_files(folder):
        check_safetensors(weights)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelUnavailableError(f"{folder} has no tokenizer", "put the model's tokenizer.json there")


def has_chat_template(folder: Path) -> bool:
    """Whether the model brings a chat template, in any of the places where transformers looks."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        return bool(_read_json(folder / "tokenizer_config.json").get("chat_template"))
    except (FileNotFoundError, ModelUnavailableError):
        return False


def check_safetensors(path: Path) -> None:
    """Raise ModelUnavailableError unless the file's header is sane and the file as long as it says."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            header_bytes = int.from_bytes(file.read(8), "little")
            if size < 8 or header_bytes > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError("its header does not fit")
            header = json.loads(file.read(header_bytes))
        end = max((_end_of(entry) for name, entry in header.items() if name != "__metadata__"), default=0)
        if 8 + header_bytes + end != size:
            raise ValueError(f"it should have {8 + header_bytes + end} bytes and has {size}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelUnavailableError(f"{path} is damaged ({error})", "fetch the file again") from error


def _end_of(entry: dict[str, Any]) -> int:
    start, end = entry["data_offsets"]
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start <= end):
        raise ValueError("a tensor has no sane place")
    return end


def _weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files; with an index, all those that it names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
        missing = [str(name) for name in names if not (folder / str(name)).is_file()]
        if missing or not names:
            what = (
                f"{len(missing)} of {len(names)} weight files, such as {missing[0]}"
                if missing
                else "its weights"
            )
            raise ModelUnavailableError(f"{folder} lacks {what}", "fetch the model again")
        return [folder / str(name) for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise _no_weights(folder)
    return files


def _no_weights(folder: Path) -> ModelUnavailableError:
    message = f"{folder} holds no *.safetensors"
    if any(next(folder.glob(pattern), None) for pattern in _OTHER_WEIGHTS):
        remedy = "convert its weights: load them with transformers and call save_pretrained"
        return ModelUnavailableError(message, remedy)
    gguf = next(folder.glob("*.gguf"), None)
    return ModelUnavailableError(
        message, f"pass the file itself: -m {gguf}" if gguf else "fetch the model again"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ModelUnavailableError(f"{path} can't be read ({error})", "fetch the model again") from error
    if not isinstance(content, dict):
        raise ModelUnavailableError(f"{path} is not what it should be", "fetch the model again")
    return content
