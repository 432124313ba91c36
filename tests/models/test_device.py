from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kvchat.config import ModelConfig
from kvchat.errors import ModelUnavailableError, OutOfMemoryError
from kvchat.models.device import (
    Need,
    check_memory,
    choose_device,
    choose_dtype,
    free_bytes,
    is_out_of_memory,
    kv_bytes_per_token,
    weights_bytes,
)
from kvchat.models.loader import load_model
from kvchat.models.stock.network import describe
from tests.engine.talk import Talk
from tests.families.shrink import tiny_random_model
from tests.families.zoo import ZOO
from tests.tiny import tiny_folder

CPU = torch.device("cpu")


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ModelUnavailableError, match="no cuda"):
        choose_device("cuda")
    assert choose_device("auto").type in ("cpu", "mps")


def test_a_dtype_that_was_asked_for_is_taken_and_auto_is_one_the_device_runs() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float16", cpu) is torch.float16
    assert choose_dtype("auto", cpu) in (torch.bfloat16, torch.float32)


def test_weights_are_counted_to_the_byte_in_the_dtype_they_are_loaded_in(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    for dtype in ("float32", "bfloat16"):
        loaded = load_model(folder, ModelConfig(dtype=dtype))
        assert weights_bytes(folder, loaded.dtype) == loaded.num_bytes


def test_integers_keep_their_width_and_only_the_files_of_the_index_count(tmp_path: Path) -> None:
    tensors = {"packed": torch.zeros(6, 4, dtype=torch.uint8), "scale": torch.zeros(6, dtype=torch.float16)}
    save_file(tensors, tmp_path / "part.safetensors")
    save_file({"other": torch.zeros(1000)}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "part.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_bytes(tmp_path, torch.float32) == 24 + 6 * 4


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma4", "gpt2", "deepseek_v3", "jamba", "mamba"])
def test_the_kv_of_a_token_is_known_before_the_model_is_loaded(family: str) -> None:
    loaded = describe(tiny_random_model(family), name=family)
    engine = Talk(loaded)
    engine.warm_up()
    assert kv_bytes_per_token(loaded.model.config, loaded.dtype) == engine.kv_bytes_per_token
    assert family in ZOO


def test_weights_larger_than_memory_are_refused_before_they_are_touched(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    (folder / "model.safetensors").chmod(0o400)
    size = weights_bytes(folder, torch.float32)
    with pytest.raises(
        OutOfMemoryError, match=r"tiny takes 0\.\d MB of weights .* cpu has 0\.\d MB free"
    ) as caught:
        load_model(folder, ModelConfig(name="tiny", dtype="float32"), free_bytes=lambda device: size - 1)
    assert caught.value.exit_code == 5


def test_a_context_that_does_not_fit_beside_the_weights_is_refused_with_one_that_does() -> None:
    need = Need(weights=10_000_000, kv_per_token=1000)
    check_memory("m", need, 10_000_000 + 5000 * 1000, device=CPU, context=5000)
    with pytest.raises(OutOfMemoryError, match="take --context 4999 or less"):
        check_memory("m", need, 10_000_000 + 4999 * 1000, device=CPU, context=5000)
    check_memory("m", need, 10_000_000 + 1024 * 1000, device=CPU, context=None)
    with pytest.raises(OutOfMemoryError, match="take a smaller model"):
        check_memory("m", need, 10_000_000, device=CPU, context=None)
    check_memory("m", need, None, device=CPU, context=None)


def test_this_machine_says_how_much_memory_is_free() -> None:
    free = free_bytes(CPU)
    assert free is not None
    assert free > 2**20


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_every_device_has_its_way_to_say_that_memory_ran_out(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it
