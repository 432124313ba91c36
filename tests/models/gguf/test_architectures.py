"""Every architecture gives llama.cpp's logits, and says what it does not understand.

The records of fixtures/architectures.json hold what llama.cpp's converter writes for a tiny model of each kind (metadata,
names and shapes of tensors), and libllama's logits in float32 behind the last of our tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvchat.config import ModelConfig
from kvchat.errors import ModelUnavailableError
from kvchat.models.gguf.architectures import STOCK
from kvchat.models.gguf.delta_architectures import DELTA
from kvchat.models.gguf.families import FAMILIES
from kvchat.models.gguf.importing import write_model
from kvchat.models.gguf.older_architectures import OLDER
from kvchat.models.gguf.parts import read_gguf
from kvchat.models.loaded import LoadedModel
from kvchat.models.loader import Origins, load_model
from kvchat.models.progress import silent
from kvchat.models.stock.network import StockNetwork
from tests.models.gguf.architecture_files import TOKENS, write_from_record

FIXTURES = Path(__file__).parents[2] / "fixtures"
RECORDS: dict[str, Any] = json.loads((FIXTURES / "architectures.json").read_text(encoding="utf-8"))
ALWAYS = ("llama3", "mixtral", "gemma3-4b", "gpt_oss", "falcon_h1", "deepseek2", "qwen35")
GELU = ("gemma", "gemma2", "gemma3-4b", "starcoder2", "gpt2", "bloom", "falcon", "falcon7")
"""llama.cpp looks GELU up in a table of float16, whose steps are 1e-3 of what they stand for."""


class TableOfGelu(torch.nn.Module):
    """GELU as llama.cpp looks it up: both sides of its table are float16, and beyond 10 it asks no table."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = x.half().float()
        values = torch.nn.functional.gelu(rounded, approximate="tanh").half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, values))


def loaded(folder: Path) -> LoadedModel:
    settings = ModelConfig(name="tiny", dtype="float32", device="cpu", weights="native", context=64)
    return load_model(folder, settings, origin=Origins(gguf=folder.parent / "tiny.gguf"))


def logits(folder: Path) -> np.ndarray[Any, Any]:
    model = loaded(folder)
    return np.asarray(model.forward(TOKENS, model.new_state()))


def logits_with_table(folder: Path) -> np.ndarray[Any, Any]:
    model = loaded(folder)
    assert isinstance(model.network, StockNetwork)
    gelus = [
        (module, name)
        for module in model.network.model.modules()
        for name, child in module.named_children()
        if "gelu" in type(child).__name__.lower()
    ]
    assert gelus
    for module, name in gelus:
        setattr(module, name, TableOfGelu())
    return np.asarray(model.forward(TOKENS, model.new_state()))


def imported(folder: Path, record: dict[str, Any]) -> Path:
    path, out = write_from_record(folder / "tiny.gguf", record), folder / "out"
    out.mkdir()
    write_model(read_gguf(path), out, silent)
    return out


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in RECORDS]
)
def test_an_architecture_gives_the_logits_of_libllama(name: str, tmp_path: Path) -> None:
    record = RECORDS[name]
    ours, theirs = logits(imported(tmp_path, record)), np.array(record["logits"])
    assert np.abs(ours - theirs).max() < (3e-3 if name in GELU else 1e-3)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in GELU]
)
def test_all_that_gelu_makes_different_is_the_table_of_libllama(name: str, tmp_path: Path) -> None:
    record = RECORDS[name]
    ours, theirs = logits_with_table(imported(tmp_path, record)), np.array(record["logits"])
    assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.slow
def test_gemma_2_with_46_layers_scales_its_queries_by_hidden_size_over_heads(tmp_path: Path) -> None:
    theirs = np.array(json.loads((FIXTURES / "gemma2_46_layers.json").read_text(encoding="utf-8")))
    folder = imported(tmp_path, of_46_layers(RECORDS["gemma2"]))
    assert np.abs(logits(folder) - theirs).max() < 2e-2
    assert (
        np.abs(logits_with_table(folder) - theirs).max() < 5e-3
    )  # near its steps, the table magnifies rounding
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["query_pre_attn_scalar"] == 8 and config["head_dim"] == 16
    (folder / "config.json").write_text(json.dumps(config | {"query_pre_attn_scalar": 16}), encoding="utf-8")
    assert np.abs(logits(folder) - theirs).max() > 0.1


def of_46_layers(record: dict[str, Any]) -> dict[str, Any]:
    """Gemma 2's record with as many layers as the 27B has, by which it is known, and 8 heads of 16 where 8 would fit."""
    heads = {"gemma2.attention.head_count": 8, "gemma2.attention.head_count_kv": 4, "gemma2.block_count": 46}
    shapes = {"attn_q": [128, 64], "attn_k": [64, 64], "attn_v": [64, 64], "attn_output": [64, 128]}
    tensors = {name: shape for name, shape in record["tensors"].items() if not name.startswith("blk.")}
    layer = [name for name in record["tensors"] if name.startswith("blk.0.")]
    for number in range(46):
        for name in layer:
            part = name.removeprefix("blk.0.")
            shape = shapes.get(part.removesuffix(".weight"), record["tensors"][name])
            tensors[f"blk.{number}.{part}"] = shape
    return record | {"metadata": record["metadata"] | heads, "tensors": tensors}


def test_every_row_of_the_table_has_been_held_against_libllama() -> None:
    rows = {*STOCK, *OLDER, *DELTA, *FAMILIES} - {
        "llama-experts",
        "falcon-two-norms",
    }  # told apart by what a file holds
    assert rows == {record["architecture"] for record in RECORDS.values()}


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("mixtral", "llama.attention.sliding_window", 7, "llama.attention.sliding_window"),
        ("llama", "llama.attention.sliding_window", 7, "can't have 7 as llama.attention.sliding_window"),
        ("llama", "llama.logit_scale", 2.0, "logit_scale, which kvchat does not understand"),
        ("qwen2moe", "qwen2moe.expert_gating_func", 2, "can't have 2 as qwen2moe.expert_gating_func"),
        ("gemma3-4b", "gemma3.rope.scaling.type", "sideways", "'sideways', which is unknown"),
        ("llama-yarn", "llama.rope.scaling.attn_factor", 1.5, "attn_factor"),
        ("deepseek2", "deepseek2.rope.scaling.type", "yarn", "yarn"),
        ("deepseek2-yarn", "deepseek2.rope.scaling.yarn_log_multiplier", 0.0, "yarn_log_multiplier"),
        ("granite", "granite.attention.dreams", 1, "granite.attention.dreams"),
    ],
)
def test_a_key_that_bears_on_the_arithmetic_and_is_not_understood_is_a_refusal(
    tmp_path: Path, name: str, key: str, value: Any, said: str
) -> None:
    record = RECORDS[name]
    changed = record | {"metadata": record["metadata"] | {key: value}}
    with pytest.raises(ModelUnavailableError, match=said) as caught:
        imported(tmp_path, changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "removed", "added", "said"),
    [
        ("mixtral", "blk.1.ffn_up_exps.weight", None, r"lacks what belongs to tensor blk\.1\.ffn_gate_exps"),
        ("gpt_oss", "blk.0.attn_sinks.weight", None, r"lacks model\.layers\.0\.self_attn\.sinks"),
        ("gemma3-4b", None, "blk.0.attn_q.bias", r"unknown tensor blk\.0\.attn_q\.bias"),
        ("qwen3moe-yarn", None, "blk.0.attn_dreams.weight", r"unknown tensor blk\.0\.attn_dreams"),
    ],
)
def test_a_tensor_too_few_or_too_many_is_refused_by_its_name(
    tmp_path: Path, name: str, removed: str | None, added: str | None, said: str
) -> None:
    record = RECORDS[name]
    tensors = {key: shape for key, shape in record["tensors"].items() if key != removed}
    with pytest.raises(ModelUnavailableError, match=said):
        imported(tmp_path, record | {"tensors": tensors | ({added: [64]} if added else {})})


def test_layers_that_only_guess_ahead_are_left_out(tmp_path: Path) -> None:
    record = RECORDS["qwen35"]
    last = {name: shape for name, shape in record["tensors"].items() if name.startswith("blk.3.")}
    ahead = {name.replace("blk.3.", "blk.4."): shape for name, shape in last.items()}
    said = {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    said["qwen35.attention.recurrent_layers"] = [True, True, True, False, False]
    whole = record | {
        "metadata": record["metadata"] | said,
        "tensors": record["tensors"] | ahead | {"blk.4.nextn.eh_proj.weight": [64, 128]},
    }
    assert np.abs(logits(imported(tmp_path, whole)) - np.array(record["logits"])).max() < 1e-3
    with pytest.raises(ModelUnavailableError, match="contradicts itself"):
        (tmp_path / "none").mkdir()
        imported(
            tmp_path / "none", record | {"metadata": record["metadata"] | {"qwen35.nextn_predict_layers": 4}}
        )


def test_a_window_of_phi_3_is_kept_where_llama_cpp_leaves_it_out(tmp_path: Path) -> None:
    record = RECORDS["phi3"]
    windowed = record | {"metadata": record["metadata"] | {"phi3.attention.sliding_window": 8}}
    assert np.abs(logits(imported(tmp_path, windowed)) - np.array(record["logits"])).max() > 0.1
