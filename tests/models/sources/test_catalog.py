"""Names and what they stand for: folders and GGUF files found, imported, listed, removed, refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvchat.errors import ModelUnavailableError, UsageError
from kvchat.models.sources.catalog import Origin
from kvchat.models.sources.installed import packed_stem, read_stamp
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
        ({"general__type": "mmproj"}, "(mmproj)"),
        ({"llama__block_count": 10**8}, "contradicts itself"),
        ({"llama__context_length": 2**32 - 1}, "contradicts itself"),
    ],
)
def test_a_gguf_that_is_no_model_for_us_says_what_to_pass(
    root: Path, tmp_path: Path, metadata: dict[str, object], said: str
) -> None:
    write_gguf(tmp_path / "tiny.gguf", **metadata)
    assert said in refusal(root, str(tmp_path / "tiny.gguf"))


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


def test_a_gguf_file_is_imported_once_and_found_again(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "My Tiny.gguf")
    name = str(tmp_path / "My Tiny.gguf")
    assert catalog(root).find(name) is None
    files = catalog(root).resolve(name)
    written = (files.folder / "tokenizer.json").stat().st_mtime_ns
    assert catalog(root).resolve(name) == files == catalog(root, offline=True).find(name)
    assert (files.folder / "tokenizer.json").stat().st_mtime_ns == written
    assert (files.origin, files.gguf) == (Origin.GGUF, tmp_path / "My Tiny.gguf")
    assert not list(files.folder.glob("*.safetensors"))
    assert not leftovers(root)


def test_a_gguf_file_that_changed_is_imported_anew(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_hf_model(seed=0))
    first = catalog(root).resolve(str(path)).folder
    before = read_stamp(first)
    write_gguf(path, tiny_hf_model(seed=1))
    assert catalog(root).find(str(path)) is None
    second = catalog(root).resolve(str(path)).folder
    assert second == first
    assert read_stamp(second) != before


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
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(whole[:-1] + b"\x55")
    assert catalog(root).find(str(tmp_path / "tiny.gguf")) is None
    catalog(root).resolve(str(tmp_path / "tiny.gguf"))
    assert (folder / "tokenizer.json").read_bytes() == whole


def test_an_import_of_an_earlier_format_makes_way_for_one_of_this(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    (folder / "model.safetensors").write_bytes(b"a copy of all weights in float32")
    stamp = json.loads((folder / "kvchat.json").read_text())
    (folder / "kvchat.json").write_text(json.dumps(stamp | {"format": stamp["format"] - 1}))
    assert catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder == folder
    assert not (folder / "model.safetensors").exists() and not leftovers(root)


def test_an_import_that_fails_half_way_leaves_nothing(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__merges=None)  # found out after the config is written
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


def dies_between_the_renames(name: str, root: Path) -> None:
    """Import `name` in a child that is killed once the old folder is out of the way."""
    if (child := os.fork()) == 0:
        rename = Path.rename

        def rename_and_die(path: Path, target: Path) -> None:
            rename(path, target)
            os.kill(os.getpid(), signal.SIGKILL)

        Path.rename = rename_and_die  # type: ignore[method-assign, assignment]
        catalog(root).resolve(name)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("by_name", [False, True])
def test_a_kill_between_the_renames_of_a_new_import_loses_nothing(
    root: Path, tmp_path: Path, by_name: bool
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_hf_model(seed=0))
    folder = catalog(root).resolve(str(path)).folder
    before = read_stamp(folder)
    write_gguf(path, tiny_hf_model(seed=1))
    dies_between_the_renames(str(path), root)
    assert not folder.exists() and leftovers(root)
    if by_name:
        assert "is gone or another file" in refusal(root, folder.name)
        assert read_stamp(folder) == before
        write_gguf(path, tiny_hf_model(seed=0))
        assert catalog(root, offline=True).resolve(folder.name).folder == folder
    else:
        assert catalog(root, offline=True).resolve(str(path)).folder == folder
    assert not leftovers(root)


def test_other_weights_of_the_same_name_size_and_time_are_imported_anew(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_hf_model(seed=0))
    state = path.stat()
    before = read_stamp(catalog(root).resolve(str(path)).folder)
    write_gguf(path, tiny_hf_model(seed=1))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert read_stamp(catalog(root).resolve(str(path)).folder) != before


def test_links_in_our_own_folder_lead_nowhere(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    (folder / "kvchat.json").rename(tmp_path / "stamp.json")
    (folder / "kvchat.json").symlink_to(tmp_path / "stamp.json")
    assert catalog(root).find(folder.name) is None
    (root / "imported" / "elsewhere").symlink_to(tmp_path)
    assert [entry.name for entry in catalog(root).entries()] == ["smollm2-135m", folder.name]


def test_a_stamp_that_names_files_elsewhere_is_none(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    stamp = json.loads((folder / "kvchat.json").read_text())
    (folder / "config.json").rename(folder.parent / "config.json")
    stamp["files"]["../config.json"] = stamp["files"].pop("config.json")
    (folder / "kvchat.json").write_text(json.dumps(stamp))
    assert catalog(root).find(folder.name) is None


# listing and removing


def test_an_import_is_listed_found_and_removed_by_its_name(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    default, entry = catalog(root).entries()
    assert (default.name, default.folder, default.num_bytes) == ("smollm2-135m", None, 0)
    assert (entry.name, entry.folder, entry.origin) == (folder.name, folder, Origin.GGUF)
    assert entry.num_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert catalog(root).path(entry.name) == folder
    files = catalog(root).resolve(entry.name)
    assert (files.folder, files.gguf) == (folder, tmp_path / "tiny.gguf")
    assert catalog(root).pull(entry.name) == files
    (tmp_path / "tiny.gguf").unlink()
    assert f"made for {tmp_path / 'tiny.gguf'}, which is gone" in refusal(root, entry.name)
    assert catalog(root).entries()[1].num_bytes == entry.num_bytes
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
