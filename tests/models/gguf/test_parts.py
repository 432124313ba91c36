"""A model in several files: the same by whichever of them it is opened, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from kvchat.config import ModelConfig
from kvchat.errors import ModelUnavailableError
from kvchat.models.fingerprint import fingerprint
from kvchat.models.gguf.checkpoint import GgufCheckpoint
from kvchat.models.gguf.parts import located, named_parts, read_gguf
from kvchat.models.lean.network import LeanNetwork
from kvchat.models.loader import Origins, load_model
from kvchat.models.sources.contents import Contents
from tests.models.isolated import catalog, leftovers, refusal
from tests.models.tiny_gguf import Type, tiny_hf_model, write_gguf
from tests.tiny import random_tokens

NUM_PARTS = 4
_SAID = {"gemma2": {"gemma2__attention__sliding_window": 64, "gemma2__attn_logit_softcapping": 50.0}}


def in_parts(folder: Path, family: str = "llama", *, name: str = "tiny", seed: int = 0) -> list[Path]:
    """A model in four files, beside the same in one."""
    folder.mkdir(exist_ok=True, parents=True)
    model, said = tiny_hf_model(family, seed=seed), _SAID.get(family, {})
    write_gguf(folder / f"whole-{name}.gguf", model, tensor_type=Type.Q4_1, **said)
    num_tensors = len(read_gguf(folder / f"whole-{name}.gguf").tensors)
    write_gguf(
        folder / f"{name}.gguf",
        model,
        tensor_type=Type.Q4_1,
        part_tensors=-(-num_tensors // NUM_PARTS),
        **said,
    )
    parts = sorted(folder.glob(f"{name}-*-of-*.gguf"))
    assert len(parts) == NUM_PARTS
    return parts


def test_tensors_and_what_is_said_are_those_of_one_file_by_whichever_part_it_is_opened(
    tmp_path: Path,
) -> None:
    parts = in_parts(tmp_path)
    whole = GgufCheckpoint.open(tmp_path / "whole-tiny.gguf")
    for part in parts:
        gguf, checkpoint = read_gguf(part), GgufCheckpoint.open(part)
        assert (gguf.path, list(gguf.paths)) == (parts[0], parts) == (parts[0], checkpoint.paths)
        assert gguf.metadata["llama.block_count"] == 2
        assert checkpoint.names == whole.names
        assert all(torch.equal(checkpoint.get(name), whole.get(name)) for name in whole.names)
    name = "model.layers.1.self_attn.q_proj.weight"  # rows that lie apart, from the mapped file
    rows = torch.tensor([3, 40])
    assert torch.equal(checkpoint.rows(name, rows), whole.rows(name, rows))
    assert torch.equal(checkpoint.part(name, 8, 24), whole.part(name, 8, 24))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_it_is_one_model_that_computes_what_one_file_computes(
    tmp_path: Path, root: Path, family: str
) -> None:
    parts = in_parts(tmp_path, family)
    found = []
    for path in (tmp_path / "whole-tiny.gguf", parts[2]):
        files = catalog(root).resolve(str(path))
        model = load_model(
            files.folder, ModelConfig(dtype="float32", device="cpu"), origin=Origins(files.gguf, root)
        )
        assert isinstance(model.network, LeanNetwork) == (family == "llama")
        found.append(model.forward(random_tokens(20), model.new_state()))
    assert torch.equal(*found)


def test_all_parts_are_one_import_which_is_made_anew_when_one_of_them_changes(
    tmp_path: Path, root: Path
) -> None:
    parts = in_parts(tmp_path)
    found = [catalog(root).resolve(str(part)) for part in parts]
    assert found == [found[0]] * NUM_PARTS == [catalog(root, offline=True).find(str(parts[3]))] * NUM_PARTS
    assert found[0].gguf == parts[0] and found[0].folder.name.startswith("tiny-")
    assert catalog(root).resolve(found[0].folder.name).gguf == parts[0]
    shutil.copy(in_parts(tmp_path / "other", seed=1)[3], parts[3])
    assert catalog(root).find(str(parts[0])) is None
    assert catalog(root).find(found[0].folder.name) is None
    assert catalog(root).resolve(str(parts[0])).folder == found[0].folder
    assert not leftovers(root)


def test_the_fingerprint_is_of_all_parts(tmp_path: Path, root: Path) -> None:
    parts = in_parts(tmp_path)
    folder = catalog(root).resolve(str(parts[0])).folder

    def mark() -> bytes:
        return fingerprint(folder, {}, contents=Contents(root), gguf=parts[0])

    before = mark()
    shutil.copy(in_parts(tmp_path / "other", seed=1)[3], parts[3])
    assert mark() != before


def test_links_to_files_named_by_their_hashes_are_parts_by_their_own_names(
    tmp_path: Path, root: Path
) -> None:
    parts = in_parts(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for number, part in enumerate(parts):
        (snapshot / part.name).symlink_to(part.rename(part.with_name(f"blob{number}")))
    files = catalog(root).resolve(str(snapshot / parts[1].name))
    assert files.gguf == snapshot / parts[0].name == located(snapshot / parts[3].name)
    assert catalog(root).find(str(snapshot / parts[0].name)) == files
    assert catalog(root).resolve(files.folder.name).gguf == files.gguf


def test_a_part_that_is_missing_is_named_in_one_line(tmp_path: Path, root: Path) -> None:
    parts = in_parts(tmp_path)
    parts[2].unlink()
    for part in (parts[0], parts[2], parts[3]):
        line = refusal(root, str(part))
        assert f"lacks 1 of the 4 parts of a model: {parts[2].name}" in line
    assert "there is no file" in refusal(root, str(tmp_path / "other-00001-of-00002.gguf"))


def test_parts_of_other_models_and_of_other_names_are_refused(tmp_path: Path, root: Path) -> None:
    parts, others = in_parts(tmp_path), in_parts(tmp_path / "other", "qwen3", seed=1)
    kept = parts[1].read_bytes()
    for strange in (parts[2], tmp_path / "whole-tiny.gguf"):
        shutil.copy(strange, parts[1])
        assert f"{parts[1].name} does not belong to" in refusal(root, str(parts[0]))
    shutil.copy(others[1], parts[1])
    assert "parts of" in refusal(root, str(parts[0])) or "lacks tensor" in refusal(root, str(parts[0]))
    parts[1].write_bytes(kept[: len(kept) // 2])
    assert "no readable GGUF file" in refusal(root, str(parts[0]))
    parts[1].write_bytes(kept)
    renamed = parts[0].rename(tmp_path / "renamed.gguf")
    assert "one of 4 parts, and its name says otherwise" in refusal(root, str(renamed))


def test_a_whole_file_that_is_named_as_a_part_is_read_alone_where_it_is_the_only_one(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny-00001-of-00001.gguf")
    assert read_gguf(tmp_path / "tiny-00001-of-00001.gguf").paths == (tmp_path / "tiny-00001-of-00001.gguf",)
    write_gguf(tmp_path / "two-00001-of-00002.gguf")
    shutil.copy(tmp_path / "two-00001-of-00002.gguf", tmp_path / "two-00002-of-00002.gguf")
    with pytest.raises(ModelUnavailableError, match="no part of a model"):
        read_gguf(tmp_path / "two-00002-of-00002.gguf")


@pytest.mark.parametrize(
    "name", ["a.gguf", "a-00003-of-00002.gguf", "a-1-of-2.gguf", "a-00000-of-00002.gguf"]
)
def test_other_names_are_of_no_parts(name: str) -> None:
    assert named_parts(Path(name)) == [Path(name)]
