"""Weights that can't be read right are refused in one line, which says what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvchat.config import ModelConfig
from kvchat.errors import ModelUnavailableError
from kvchat.models.loader import load_model
from tests.models.tiny_gguf import tiny_hf_model


def saved(folder: Path, family: str = "llama") -> Path:
    tiny_hf_model(family).save_pretrained(folder)
    return folder


def changed(folder: Path, **tensors: torch.Tensor | None) -> None:
    held = load_file(folder / "model.safetensors") | tensors
    kept = {name: tensor for name, tensor in held.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def state(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | config), encoding="utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(ModelUnavailableError) as caught:
        load_model(folder, ModelConfig(name="tiny", dtype="float32"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("gptq", "GPTQ"),
        ("awq", "AWQ"),
        ("bitsandbytes", "bitsandbytes"),
        ("compressed-tensors", "compressed-tensors"),
    ],
)
def test_packed_weights_are_called_by_their_name(tmp_path: Path, method: str, said: str) -> None:
    state(saved(tmp_path), quantization_config={"quant_method": method, "bits": 4})
    assert f"packed by {said}" in refusal(tmp_path)
    assert "GGUF" in refusal(tmp_path)


def test_weights_for_mlx_are_called_by_their_name(tmp_path: Path) -> None:
    state(saved(tmp_path), quantization={"group_size": 64, "bits": 4})
    assert "packed for MLX" in refusal(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_fp8_without_scales_is_refused_by_the_tensors_name(tmp_path: Path, family: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    held = load_file(saved(tmp_path, family) / "model.safetensors")
    changed(tmp_path, **{name: held[name].to(torch.float8_e4m3fn)})
    assert f"{name} is stored as F8_E4M3 without scales" in refusal(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_missing_tensor_is_refused_by_its_name(tmp_path: Path, family: str) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    changed(saved(tmp_path, family), **{name: None})
    assert name in refusal(tmp_path)


@pytest.mark.parametrize("family", ["gemma2", "cohere2"])
def test_a_tensor_of_the_layers_kind_too_many_is_refused_by_its_name(tmp_path: Path, family: str) -> None:
    name = "model.layers.1.self_attn.v_proj.bias"
    changed(saved(tmp_path, family), **{name: torch.ones(32)})
    assert f"has the tensor {name}" in refusal(tmp_path)


def test_layers_beside_the_model_are_left_out(tmp_path: Path) -> None:
    extra = {
        "model.layers.7.self_attn.v_proj.weight": torch.ones(32, 64),
        "vision.patch.weight": torch.ones(2, 2),
    }
    changed(saved(tmp_path, "gemma2"), **extra)
    assert load_model(tmp_path, ModelConfig(name="tiny", dtype="float32")).architecture == "gemma2"
