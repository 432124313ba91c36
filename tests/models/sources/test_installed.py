"""What was imported or fetched: made once, made anew where it has to be, listed, removed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from kvchat.errors import ModelUnavailableError, UsageError
from kvchat.models.sources.catalog import Origin
from kvchat.models.sources.installed import packed_stem, read_stamp
from tests.models.isolated import catalog, leftovers, refusal
from tests.models.tiny_gguf import tiny_hf_model, write_gguf


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
