"""An adapter's folder, as peft saves it -> the model with the adapter in its weights. peft is an extra."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kvchat.errors import ModelUnavailableError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def check_adapter(folder: Path, *, find_spec: Callable[[str], object] = find_spec) -> None:
    """Raises ModelUnavailableError for a folder that holds no adapter, or when peft is not installed. Loads nothing."""
    if not folder.is_dir():
        raise ModelUnavailableError(
            f"there is no adapter folder {folder}", "give the folder that peft saved one in"
        )
    missing = next((name for name in (CONFIG, WEIGHTS[0]) if not (folder / name).exists()), None)
    if missing and not (missing == WEIGHTS[0] and (folder / WEIGHTS[1]).exists()):
        raise ModelUnavailableError(
            f"{folder} is no adapter: it has no {missing}", "give the folder that peft saved one in"
        )
    if find_spec("peft") is None:
        raise ModelUnavailableError(
            "--adapter needs peft, which is not installed", "pip install 'kvchat[adapters]'"
        )


def apply_adapter(model: Any, folder: Path) -> Any:
    """`model` with the adapter of `folder` merged into its weights: it costs nothing a token, and every policy stays.

    Raises ModelUnavailableError for an adapter of another model, and for one that is not a change of weights.
    """
    check_adapter(folder)
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    try:
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise ValueError(f"{config.peft_type.value} changes the prompt, not the weights")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what does not fit is found below
            adapted = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
        stored = _stored_names(folder)
        strange = stored ^ set(get_peft_model_state_dict(adapted)) if stored else set()
        if strange:
            raise ValueError(f"{len(strange)} of its tensors have no place, such as {min(strange)}")
        return adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft checks with errors of many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ModelUnavailableError(
            f"the adapter {folder} does not fit {_name(model)}: {lines[-1][:200]}",
            "give the model that it was made for",
        ) from error


def _stored_names(folder: Path) -> set[str]:
    """The names of an adapter's tensors; empty where only loading would tell."""
    path = folder / WEIGHTS[0]
    if not path.exists():
        return set()
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return set(header) - {"__metadata__"}


def _name(model: Any) -> str:
    return f"this {model.config.model_type} model"
