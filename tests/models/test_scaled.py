"""fp8 with block scales and MXFP4: the numbers of the formats' own formulas, in the model that they belong to, or a refusal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from kvchat.config import ModelConfig
from kvchat.errors import ModelUnavailableError, OutOfMemoryError
from kvchat.models.lean.network import LeanNetwork
from kvchat.models.loader import load_model
from kvchat.models.scaled import ScaledCheckpoint
from tests.families.shrink import random_tokens, tiny_random_model
from tests.families.sweep import plain_logits
from tests.models.test_foreign import changed, refusal, state

BLOCK = (24, 40)
"""Sizes that divide no matrix here."""
FP4 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"use_sliding_window": False},
    "gemma2": {},
    "qwen3_moe": {},
    "deepseek_v3": {"first_k_dense_replace": 1},
}


@pytest.fixture(autouse=True)
def no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers needs that package for such weights; here it can't be imported."""
    monkeypatch.setitem(sys.modules, "accelerate", None)


def blocks_of(matrix: torch.Tensor) -> torch.Tensor:
    """Scales, one a block, such that the largest of each block is the largest fp8 number."""
    rows, columns = matrix.shape
    return torch.tensor(
        [
            [
                float(matrix[r : r + BLOCK[0], c : c + BLOCK[1]].abs().max()) / 448
                for c in range(0, columns, BLOCK[1])
            ]
            for r in range(0, rows, BLOCK[0])
        ]
    )


def number(stored: torch.Tensor, scales: torch.Tensor, row: int, column: int) -> float:
    """The format's formula, for one number."""
    return float(stored[row, column].float()) * float(scales[row // BLOCK[0], column // BLOCK[1]])


def in_fp8(folder: Path, family: str) -> tuple[Any, list[str]]:
    """A model whose layers' matrices are stored in fp8; and the same with what these stand for, and their names."""
    model = tiny_random_model(family, **FAMILIES[family])
    model.save_pretrained(folder)
    held = load_file(folder / "model.safetensors")
    names = [name for name in held if name.endswith("_proj.weight")]
    for name in names:
        scales = blocks_of(held[name])
        held[f"{name}_scale_inv"] = scales
        rows = scales.repeat_interleave(BLOCK[0], 0)[: held[name].shape[0]]
        whole = rows.repeat_interleave(BLOCK[1], 1)[:, : held[name].shape[1]]
        held[name] = (held[name] / whole).to(torch.float8_e4m3fn)
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    stated = {"quant_method": "fp8", "weight_block_size": list(BLOCK), "activation_scheme": "dynamic"}
    state(folder, quantization_config=stated)
    return model, names


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_fp8_is_the_one_of_the_numbers_that_it_stands_for(tmp_path: Path, family: str) -> None:
    model, names = in_fp8(tmp_path / "fp8", family)
    held, checkpoint = load_file(tmp_path / "fp8/model.safetensors"), ScaledCheckpoint.of(tmp_path / "fp8")
    assert checkpoint is not None and names
    plain = {name: checkpoint.get(name).contiguous() for name in checkpoint.names}
    for name in names:
        last, columns = plain[name].shape[0] - 1, plain[name].shape[1]
        for row, column in ((0, 0), (23, 31), (24, columns - 1), (last, columns - 1)):
            expected = torch.tensor(number(held[name], held[f"{name}_scale_inv"], row, column))
            assert torch.equal(plain[name][row, column], expected)
        assert torch.equal(checkpoint.part(name, 20, 30), plain[name][20:30])
        assert torch.equal(checkpoint.rows(name, torch.tensor([29, 3])), plain[name][[29, 3]])
        assert checkpoint.shape(name) == tuple(plain[name].shape)
    model.config.save_pretrained(tmp_path / "plain")
    save_file(plain, tmp_path / "plain/model.safetensors", {"format": "pt"})
    found = []
    for folder in ("fp8", "plain"):
        loaded = load_model(tmp_path / folder, ModelConfig(dtype="float32", device="cpu"))
        assert isinstance(loaded.network, LeanNetwork) == (family == "qwen3")
        found.append(loaded)
    if family != "qwen3":
        parameters = [dict(loaded.model.named_parameters()) for loaded in found]
        assert all(torch.equal(value, parameters[1][name]) for name, value in parameters[0].items())
    # products on a CPU may round otherwise where a matrix lies otherwise in memory
    logits = [loaded.forward(random_tokens(30), loaded.new_state()) for loaded in found]
    assert torch.allclose(*logits, atol=1e-5)


def test_gpt_oss_in_mxfp4_is_the_model_of_the_numbers_that_it_stands_for(tmp_path: Path) -> None:
    model = tiny_random_model("gpt_oss")
    model.save_pretrained(tmp_path)
    held, draw = load_file(tmp_path / "model.safetensors"), torch.Generator().manual_seed(3)
    expected: dict[str, torch.Tensor] = {}
    for name in [
        name for name in held if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj")
    ]:
        experts, inner, rows = held.pop(name).shape
        codes = torch.randint(256, (experts, rows, inner // 32, 16), generator=draw, dtype=torch.uint8)
        scales = torch.randint(120, 128, (experts, rows, inner // 32), generator=draw, dtype=torch.uint8)
        held |= {f"{name}_blocks": codes, f"{name}_scales": scales}
        expected[name] = convert_moe_packed_tensors(codes, scales, dtype=torch.float32)
        byte, power = int(codes[1, 5, 1, 7]), 2.0 ** (int(scales[1, 5, 1]) - 127)
        for half, code in ((0, byte & 15), (1, byte >> 4)):
            value = (-1 if code & 8 else 1) * FP4[code & 7] * power
            assert float(expected[name][1, 32 + 2 * 7 + half, 5]) == value
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    state(
        tmp_path,
        quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens"]},
    )
    checkpoint = ScaledCheckpoint.of(tmp_path)
    assert checkpoint is not None
    for name, values in expected.items():
        assert torch.equal(checkpoint.get(name).float(), values)
        assert torch.equal(checkpoint.part(name, 1, 3).float(), values[1:3])
        assert checkpoint.shape(name) == tuple(values.shape)
    model.load_state_dict(expected, strict=False)
    loaded = load_model(tmp_path, ModelConfig(dtype="float32", device="cpu"))
    tokens = random_tokens(30)
    logits = loaded.forward(tokens, loaded.new_state())
    assert torch.allclose(logits, plain_logits(model)(tokens)[-1], atol=1e-4)


def test_memory_is_asked_for_what_the_numbers_become(tmp_path: Path) -> None:
    in_fp8(tmp_path, "gemma2")
    size = (tmp_path / "model.safetensors").stat().st_size
    settings = ModelConfig(name="tiny", dtype="float32", device="cpu", weights="native")
    with pytest.raises(OutOfMemoryError, match=r"takes .* of weights"):
        load_model(tmp_path, settings, free_bytes=lambda device: 2 * size)
    assert load_model(tmp_path, settings, free_bytes=lambda device: 100 * size).num_bytes > 2 * size


def test_one_scale_for_a_whole_matrix_is_read(tmp_path: Path) -> None:
    _, names = in_fp8(tmp_path, "qwen3")
    held = load_file(tmp_path / "model.safetensors")
    changed(
        tmp_path, **{f"{names[0]}_scale_inv": torch.tensor(0.25), f"{names[0]}.input_scale": torch.ones(1)}
    )
    checkpoint = ScaledCheckpoint.of(tmp_path)
    assert checkpoint is not None and not [name for name in checkpoint.names if "scale" in name]
    assert torch.equal(checkpoint.get(names[0]), held[names[0]].float() / 4)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_scales_that_are_missing_or_do_not_fit_are_refused_by_the_tensors_name(
    tmp_path: Path, family: str
) -> None:
    _, names = in_fp8(tmp_path, family)
    name = names[3]
    kept = load_file(tmp_path / "model.safetensors")
    changed(tmp_path, **{f"{name}_scale_inv": None})
    assert f"{name} is stored as F8_E4M3 without scales" in refusal(tmp_path)
    changed(tmp_path, **{f"{name}_scale_inv": torch.ones(7, 2)})
    assert f"{name} has scales [7, 2], where its blocks are" in refusal(tmp_path)
    changed(tmp_path, **{name: kept[name].float(), f"{name}_scale_inv": kept[f"{name}_scale_inv"]})
    assert f"{name} has scales, and is no fp8" in refusal(tmp_path)
    changed(tmp_path, **{name: kept[name]})
    state(tmp_path, quantization_config={"quant_method": "fp8"})
    assert "does not say of what size" in refusal(tmp_path)
    for size in ("128", [128], [0, 128], [1.5, 2]):
        state(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": size})
        assert "weight_block_size can't be" in refusal(tmp_path)


def test_mxfp4_that_does_not_fit_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    tiny_random_model("gpt_oss").save_pretrained(tmp_path)
    state(tmp_path, quantization_config={"quant_method": "mxfp4"})
    name = "model.layers.0.mlp.experts.down_proj"
    codes, scales = (
        torch.zeros(4, 64, 3, 16, dtype=torch.uint8),
        torch.full((4, 64, 3), 127, dtype=torch.uint8),
    )
    changed(tmp_path, **{name: None, f"{name}_blocks": codes})
    assert f"{name}_blocks has no scales" in refusal(tmp_path)
    changed(tmp_path, **{f"{name}_scales": scales[:, :5].contiguous()})
    assert f"{name} is no MXFP4" in refusal(tmp_path)
    scales[2, 7, 1] = 255
    changed(tmp_path, **{f"{name}_scales": scales})
    assert "are no numbers" in refusal(tmp_path)


def test_other_folders_are_not_of_this_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert ScaledCheckpoint.of(tmp_path) is None
    with pytest.raises(ModelUnavailableError):
        (tmp_path / "config.json").write_text("[]")
        ScaledCheckpoint.of(tmp_path)
