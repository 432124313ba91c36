"""Names and what they stand for: folders and GGUF files, found or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from kvchat.errors import ModelUnavailableError
from kvchat.models.sources.catalog import Origin
from tests.models.isolated import catalog, refusal
from tests.models.tiny_gguf import tiny_hf_model, write_gguf


def test_an_unknown_name_is_answered_with_the_nearest_and_the_forms_there_are(root: Path) -> None:
    line = refusal(root, "smolm2-135")
    assert "did you mean smollm2-135m" in line
    assert ".gguf file" in line and "org/name" in line


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere/kvchat"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_name(root: Path, name: str) -> None:
    assert "there is no model at" in refusal(root, name)


def test_a_gguf_file_that_does_not_exist_says_so(root: Path, tmp_path: Path) -> None:
    assert "there is no file" in refusal(root, str(tmp_path / "nothing.gguf"))
    assert not root.exists() or not list(root.glob("imported/*"))


def test_listing_and_looking_load_neither_torch_nor_transformers(root: Path, model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kvchat.models.sources.catalog import Catalog\n"
        f"c = Catalog(Path({str(root)!r})); c.entries(); c.find({str(model)!r}); c.find('a/b')\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'gguf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# local folders


def test_a_local_folder_is_taken_as_it_is(root: Path, model: Path) -> None:
    files = catalog(root).resolve(str(model))
    assert (files.folder, files.origin, files.gguf) == (model, Origin.FOLDER, None)
    assert not root.exists()


def test_a_relative_folder_and_a_home_folder_are_found(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setenv("HOME", str(model.parent))
    assert {catalog(root).resolve(name).folder for name in ("model", "./model", "~/model")} == {model}


def test_a_folder_does_not_take_the_place_of_a_model_of_the_hub(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent.parent)
    name = f"{model.parent.name}/{model.name}"
    with pytest.raises(
        ModelUnavailableError, match=rf"say \./{name} for the folder, or {name}@main for the hub"
    ):
        catalog(root).resolve(name)
    assert catalog(root).find(name) is None
    assert catalog(root).resolve(f"./{name}").folder == model
    with pytest.raises(ModelUnavailableError, match="without --offline"):
        catalog(root, offline=True).resolve(f"{name}@main")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "holds no *.safetensors"),
        ("chat_template.jinja", "has no chat template: pass one with --chat-template"),
    ],
)
def test_a_folder_that_lacks_something_says_what(root: Path, model: Path, missing: str, said: str) -> None:
    (model / missing).unlink()
    assert said in refusal(root, str(model))


def test_a_folder_without_a_template_is_taken_when_the_caller_brings_one(root: Path, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    assert catalog(root).resolve(str(model), needs_template=False).folder == model


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.json"])
def test_a_template_counts_wherever_transformers_looks(root: Path, model: Path, place: str) -> None:
    (model / "chat_template.jinja").rename(model / "gone")
    content = json.loads((model / place).read_text()) if (model / place).exists() else {}
    (model / place).write_text(json.dumps(content | {"chat_template": "{{ messages }}"}))
    assert catalog(root).resolve(str(model)).folder == model


def test_a_folder_of_torch_files_says_how_to_convert_them(root: Path, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "save_pretrained" in refusal(root, str(model))


def test_a_folder_that_holds_a_gguf_points_at_it(root: Path, model: Path) -> None:
    (model / "model.safetensors").rename(model / "some.gguf")
    assert f"-m {model / 'some.gguf'}" in refusal(root, str(model))


def test_missing_shards_are_named(root: Path, model: Path) -> None:
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "1 of 2 weight files, such as model-00002-of-00002.safetensors" in refusal(root, str(model))


@pytest.mark.parametrize("length", [0, 4, 8, 100, 3000, -1])
def test_truncated_weights_are_found_before_anything_loads_them(root: Path, model: Path, length: int) -> None:
    weights = model / "model.safetensors"
    os.truncate(weights, length if length >= 0 else weights.stat().st_size - 1)
    assert "is damaged" in refusal(root, str(model))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"{}"])
def test_a_damaged_config_is_refused(root: Path, model: Path, content: bytes) -> None:
    (model / "config.json").write_bytes(content)
    assert "config.json" in refusal(root, str(model))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_named_as_such(root: Path, model: Path, file: str) -> None:
    (model / file).write_text(POINTER)
    assert "is a pointer of Git LFS and not the file itself: fetch it with git lfs pull" in refusal(
        root, str(model)
    )


def test_a_folder_of_gguf_files_names_one_of_them(root: Path, tmp_path: Path) -> None:
    for name in ("mmproj-model.gguf", "model-q4.gguf", "model-q8.gguf"):
        write_gguf(tmp_path / name)
    line = refusal(root, str(tmp_path))
    assert "holds GGUF files" in line and line.endswith(f"-m {tmp_path / 'model-q4.gguf'}")
    (tmp_path / "a-vector.gguf").write_bytes(b"GGUF" + bytes(100))
    assert refusal(root, str(tmp_path)).endswith(f"-m {tmp_path / 'model-q4.gguf'}")


def test_a_mistyped_path_is_not_looked_for_on_the_hub(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(model.parent / "tiny-model.gguf")
    monkeypatch.chdir(model.parent.parent)
    here = model.parent.name
    assert refusal(root, f"{here}/modle").endswith(f"did you mean {model}?")
    assert refusal(root, f"./{here}/model/nothing/at/all").endswith("check the path")
    assert refusal(root, f"{here}/a/b/c").startswith("there is no model at")
    assert f"did you mean {model.parent / 'tiny-model.gguf'}?" in refusal(root, f"{here}/tiny-modle.gguf")


def test_a_file_in_a_models_folder_points_at_the_folder(root: Path, model: Path) -> None:
    assert refusal(root, str(model / "model.safetensors")).endswith(f"-m {model}")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "/" + "x" * 300])
def test_what_can_be_no_path_is_refused(root: Path, name: str) -> None:
    refusal(root, name)


@pytest.mark.parametrize("name", ["/etc/passwd", "../config.json", "", 7, None, "a\0b", "x" * 300])
def test_an_index_that_leads_out_of_its_folder_is_refused(root: Path, model: Path, name: object) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "names a weights file" in refusal(root, str(model))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", 10**8),
        ("num_hidden_layers", 0),
        ("num_labels", 10**8),
        ("max_position_embeddings", 0),
        ("max_position_embeddings", -5),
        ("vocab_size", 2**40),
        ("eos_token_id", 2**31),
        ("pad_token_id", [1, 2**31]),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", -1.0),
        ("num_key_value_heads", -3),
        ("intermediate_size", 10**9),
        ("anything", 10**30),
        ("text_config", {"deep": {"num_experts": 10**9}}),
        ("model_type", "x" * 10**6),
        ("model_type", 7),
    ],
)
def test_numbers_that_the_tensors_do_not_bear_out_are_refused_before_they_are_used(
    root: Path, model: Path, key: str, value: object
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {key: value}))
    assert "config.json: " in refusal(root, str(model))


def test_numbers_that_are_of_no_tensor_may_be_large(root: Path, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    others = {
        "audio_chunk_size": 480_000,
        "n_samples": 480_000,
        "sliding_window": 2**31,
        "time_step_limit": [0, 1e999],
    }
    (model / "config.json").write_text(json.dumps(config | others))
    assert catalog(root).resolve(str(model)).folder == model


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]},
        {"dtype": 7, "shape": [0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": "many", "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [0]},
        [],
    ],
)
def test_a_tensor_that_makes_no_sense_is_found_in_the_header(root: Path, model: Path, entry: object) -> None:
    text = json.dumps({"a": entry}).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert "model.safetensors is damaged" in refusal(root, str(model))


# GGUF files


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general__type": "adapter"}, "is an adapter (LoRA)"),
        ({"adapter__type": "lora"}, "is an adapter (LoRA)"),
        ({"general__type": "mmproj"}, "(mmproj)"),
        (
            {"general__type": "imatrix"},
            "(imatrix), and no model that answers: pass the GGUF file of the model",
        ),
        ({"imatrix__datasets": ["a"]}, "(imatrix), and no model that answers"),
        ({"general__architecture": "controlvector"}, "is a control vector for a model"),
        ({"llama__block_count": 10**8}, "contradicts itself"),
        ({"llama__context_length": 2**32 - 1}, "contradicts itself"),
    ],
)
def test_a_gguf_that_is_no_model_for_us_says_what_to_pass(
    root: Path, tmp_path: Path, metadata: dict[str, object], said: str
) -> None:
    write_gguf(tmp_path / "tiny.gguf", **metadata)
    assert said in refusal(root, str(tmp_path / "tiny.gguf"))


def test_a_gguf_that_holds_the_tensors_of_an_adapter_is_one_whatever_it_says(
    root: Path, tmp_path: Path
) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "lora.gguf"), "llama")
    for part in ("lora_a", "lora_b"):
        writer.add_tensor(f"blk.0.attn_q.weight.{part}", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "is an adapter (LoRA) for a model, and no model that answers" in refusal(
        root, str(tmp_path / "lora.gguf")
    )


def test_a_gguf_counts_by_what_it_is_and_not_by_its_name(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "weights.bin")
    assert catalog(root).resolve(str(tmp_path / "weights.bin")).origin is Origin.GGUF
    (tmp_path / "tiny.gguf").write_text(POINTER)
    assert "is a pointer of Git LFS" in refusal(root, str(tmp_path / "tiny.gguf"))
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "no regular file" in refusal(root, str(tmp_path / "pipe.gguf"))


@pytest.mark.parametrize(
    ("key", "value"), [("block_count", 10**8), ("embedding_length", 2**31), ("attention__head_count", 10**6)]
)
def test_numbers_of_a_gguf_that_transformers_would_read_are_compared_with_its_tensors(
    root: Path, tmp_path: Path, key: str, value: int
) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_hf_model("gemma2"), **{f"gemma2__{key}": value})
    said = refusal(root, str(tmp_path / "tiny.gguf"))
    assert "contradicts itself" in said or f"{value} as gemma2." in said or ", not (" in said
