"""Names and what they stand for: folders and GGUF files found, imported, listed, removed, refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvchat.errors import ModelUnavailableError, UsageError
from kvchat.models.catalog import Origin
from kvchat.models.installed import packed_stem
from tests.models.isolated import catalog, leftovers, refusal
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
        "import sys; from pathlib import Path; from kvchat.models.catalog import Catalog\n"
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


# GGUF files


def test_a_gguf_file_is_imported_once_and_found_again(root: Path, tmp_path: Path) -> None:
    original = write_gguf(tmp_path / "My Tiny.gguf")
    name = str(tmp_path / "My Tiny.gguf")
    assert catalog(root).find(name) is None
    files = catalog(root).resolve(name)
    written = (files.folder / "model.safetensors").stat().st_mtime_ns
    assert catalog(root).resolve(name) == files == catalog(root, offline=True).find(name)
    assert (files.folder / "model.safetensors").stat().st_mtime_ns == written
    assert (files.origin, files.gguf) == (Origin.GGUF, tmp_path / "My Tiny.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(files.folder, dtype=torch.float32)
    assert torch.equal(loaded.model.norm.weight, original.model.norm.weight)
    assert not leftovers(root)


def test_a_gguf_file_that_changed_is_imported_anew(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_hf_model(seed=0))
    first = catalog(root).resolve(str(path)).folder
    before = (first / "model.safetensors").read_bytes()
    write_gguf(path, tiny_hf_model(seed=1))
    assert catalog(root).find(str(path)) is None
    second = catalog(root).resolve(str(path)).folder
    assert second == first
    assert (second / "model.safetensors").read_bytes() != before


def test_a_gguf_file_that_was_only_touched_is_not_imported_anew(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    files = catalog(root).resolve(str(path))
    os.utime(path, (1, 1))
    assert catalog(root).find(str(path)) == files


def test_two_gguf_files_of_one_name_do_not_collide(root: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_gguf(tmp_path / folder / "tiny.gguf")
    found = {catalog(root).resolve(str(tmp_path / folder / "tiny.gguf")).folder for folder in ("a", "b")}
    assert len(found) == 2


def test_a_damaged_import_is_made_again(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1] + b"\x55")
    assert catalog(root).find(str(tmp_path / "tiny.gguf")) is None
    catalog(root).resolve(str(tmp_path / "tiny.gguf"))
    assert (folder / "model.safetensors").read_bytes() == whole


def test_an_import_that_fails_half_way_leaves_nothing(root: Path, tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "tiny.gguf", tokenizer__ggml__merges=None
    )  # found out after the weights are written
    assert "no merges" in refusal(root, str(tmp_path / "tiny.gguf"))
    assert [path for path in root.rglob("*") if path.is_dir()] == [root / "imported"]
    assert not leftovers(root)


def test_what_a_dead_process_left_is_cleaned_up(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    shutil.rmtree(folder)
    (folder.parent / f".{folder.name}.new-dead").mkdir()
    (folder.parent / f".{folder.name}.new-dead" / "model.safetensors").write_bytes(b"half")
    catalog(root).resolve(str(tmp_path / "tiny.gguf"))
    assert not leftovers(root)


def _resolve(root: Path, name: str, answers: multiprocessing.SimpleQueue[str]) -> None:
    answers.put(str(catalog(root).resolve(name).folder))


def test_two_processes_that_want_one_import_both_get_it(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    workers = [
        context.Process(target=_resolve, args=(root, str(tmp_path / "tiny.gguf"), answers)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert answers.get() == answers.get()
    assert not leftovers(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cant_be_written_is_refused(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    root.mkdir(mode=0o500)
    assert "can't write" in refusal(root, str(tmp_path / "tiny.gguf"))


def test_a_models_folder_that_is_a_file_is_refused(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    root.write_text("in the way")
    assert "can't write" in refusal(root, str(tmp_path / "tiny.gguf"))


# listing and removing


def test_an_import_is_listed_found_and_removed_by_its_name(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    default, entry = catalog(root).entries()
    assert (default.name, default.folder, default.num_bytes) == ("smollm2-135m", None, 0)
    assert (entry.name, entry.folder, entry.origin) == (folder.name, folder, Origin.GGUF)
    assert entry.num_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert catalog(root).path(entry.name) == folder
    (tmp_path / "tiny.gguf").unlink()
    files = catalog(root).resolve(entry.name)
    assert (files.folder, files.gguf) == (folder, None)
    assert catalog(root).pull(entry.name) == files
    assert catalog(root).remove(entry.name) == entry.num_bytes
    assert not folder.exists()
    assert len(catalog(root).entries()) == 1


def test_what_was_made_of_a_model_counts_and_goes_with_it(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    bare = catalog(root).entries()[1].num_bytes
    made = root / "packed" / f"{packed_stem(folder)}-int8-0.safetensors"
    others = root / "packed" / "0-int8-0.safetensors"
    made.parent.mkdir()
    for path in (made, others):
        path.write_bytes(b"12345")
    assert catalog(root).entries()[1].num_bytes == bare + 5
    assert catalog(root).remove(folder.name) == bare + 5
    assert (made.exists(), others.exists()) == (False, True)


def test_a_users_own_folder_is_never_removed(root: Path, model: Path) -> None:
    with pytest.raises(UsageError):
        catalog(root).remove(str(model))
    assert (model / "model.safetensors").exists()


def test_a_gguf_of_the_users_outlives_the_removal_of_its_import(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    catalog(root).resolve(str(tmp_path / "tiny.gguf"))
    assert catalog(root).remove(str(tmp_path / "tiny.gguf")) > 0
    assert (tmp_path / "tiny.gguf").exists()


def test_what_is_not_here_has_no_path_and_cant_be_removed(root: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="models pull smollm2-135m"):
        catalog(root).path("smollm2-135m")
    with pytest.raises(ModelUnavailableError, match="is not here"):
        catalog(root).remove("smollm2-135m")
    assert not root.exists()


def test_a_folder_that_models_are_brought_into_is_nobody_elses(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    root, before = tmp_path / "kvchat" / "models", os.umask(0)
    try:
        catalog(root).pull(str(tmp_path / "tiny.gguf"))
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (root, root.parent)} == {"0o700"}
