"""What stands beside a GGUF: its config, tokenizer, template and generation defaults, as transformers names them.

Its weights stay where they are (see checkpoint.py).
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import boundary, shown
from kvchat.models.gguf.families import (
    ELSEWHERE,
    FAMILIES,
    MAX_CONTEXT,
    ModelShape,
    expected_tensors,
    matched_tensors,
    model_config,
)
from kvchat.models.gguf.file import GgufFile
from kvchat.models.gguf.tokenizer import build_tokenizer, end_ids, special_id, tokenizer_settings
from kvchat.models.hush import hushed_transformers
from kvchat.models.progress import Progress

if TYPE_CHECKING:
    pass


def write_model(gguf: GgufFile, folder: Path, progress: Progress) -> None:
    """Fill `folder` with the small files of a model whose weights stay in the GGUF.

    Raises ModelUnavailableError for an architecture, a tensor or a tokenizer that can't be carried over.
    """
    if gguf.metadata.get("split.count", 0) not in (0, 1):
        raise ModelUnavailableError(
            f"{gguf.path} is one of several parts", "join them with llama-gguf-split --merge"
        )
    family = FAMILIES.get(gguf.architecture)
    if family is None:
        progress("importing", 0, 0)
        _write_through_transformers(gguf, folder)
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


def _write_through_transformers(gguf: GgufFile, folder: Path) -> None:
    """The slow way, for architectures that transformers can read and our table can't."""
    with hushed_transformers():
        _check_transformers_reads(gguf)
        _check_numbers(gguf)
        from transformers import AutoModelForCausalLM

        with boundary(f"transformers can't read {gguf.path}", ELSEWHERE), redirect_stderr(io.StringIO()):
            model, report = AutoModelForCausalLM.from_pretrained(
                gguf.path.parent, gguf_file=gguf.path.name, dtype="float32", output_loading_info=True
            )
            if report["missing_keys"]:
                raise ValueError(f"it lacks {sorted(report['missing_keys'])[0]}")
            if (
                getattr(model, "hf_quantizer", None) is not None
            ):  # it is dequantised now, as plain as any other
                del model.hf_quantizer, model.config.quantization_config
            model.save_pretrained(folder)


def _check_numbers(gguf: GgufFile) -> None:
    """Refuse counts and sizes that no tensor of the file bears out, before anything is made of them."""
    largest = max((size for tensor in gguf.tensors.values() for size in tensor.shape), default=0)
    for key, value in gguf.metadata.items():
        if (
            not key.startswith(f"{gguf.architecture}.")
            or isinstance(value, bool)
            or not isinstance(value, int)
        ):
            continue
        most = MAX_CONTEXT if "context" in key else max(1 << 16, largest)
        if not -1 <= value <= (len(gguf.tensors) if key.endswith(".block_count") else most):
            raise ModelUnavailableError(
                f"{gguf.path} can't have {value} as {key[:60]}", "fetch the file again"
            )


def _check_transformers_reads(gguf: GgufFile) -> None:
    """Refuse what transformers does not know, and what it would read wrongly without a word."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    name = gguf.architecture
    known = {key.replace("_", "").replace("-", "") for key in GGUF_CONFIG_MAPPING} - {"general", "tokenizer"}
    if name not in GGUF_CONFIG_ARCHS and name.replace("_", "").replace("-", "") not in known:
        raise ModelUnavailableError(f"{gguf.path} is of the unknown architecture {shown(name)}", ELSEWHERE)
    factors = next((tensor for tensor in gguf.tensors if tensor.startswith("rope_f")), None)
    if factors is not None:
        raise ModelUnavailableError(f"{gguf.path} ({name}) scales its positions by {factors}", ELSEWHERE)
    if importlib.util.find_spec("accelerate") is None:
        remedy = f"pip install accelerate, or {ELSEWHERE}"
        raise ModelUnavailableError(f"importing a GGUF of the architecture {name!r} needs accelerate", remedy)
