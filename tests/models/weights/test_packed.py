"""Integer weights between runs: made once for a content, proved before they are used, and nothing left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvchat.models.sources.contents import Contents
from kvchat.models.sources.installed import packed_files, packed_stem
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.packed import PackedHome
from tests.models.isolated import catalog
from tests.models.tiny_gguf import write_gguf

WEIGHTS = {"0.qkv.weight": torch.arange(300, dtype=torch.uint8), "head.weight": torch.ones(7, 5).bfloat16()}


class Maker:
    """Makes some tensors and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.count += 1
        return {name: tensor.clone() for name, tensor in WEIGHTS.items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"one" * 100)
    return path


def taken(source: Path, make: Maker) -> dict[str, torch.Tensor]:
    home = PackedHome.of(source.parent.parent, source.parent)
    return home.tensors(WeightsMode.INT8, [source], make)


def packed_file(source: Path) -> Path:
    (path,) = (source.parent.parent / "packed").glob("*.safetensors")
    return path


def with_its_times(path: Path, write: Callable[[], object]) -> None:
    """Let `write` change a file that afterwards has the size and the time of before."""
    state = path.stat()
    write()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size


def test_what_was_made_once_is_mapped_the_next_time(source: Path) -> None:
    make = Maker()
    for _ in range(2):
        found = taken(source, make)
        assert all(torch.equal(found[name], tensor) for name, tensor in WEIGHTS.items())
    assert make.count == 1


def test_five_flipped_bytes_are_found_though_size_and_time_are_the_same(source: Path) -> None:
    make = Maker()
    taken(source, make)
    path = packed_file(source)
    content = bytearray(path.read_bytes())
    for place in range(5):
        content[-place - 20] ^= 1
    with_its_times(path, lambda: path.write_bytes(content))
    found = taken(source, make)
    assert make.count == 2
    assert torch.equal(found["head.weight"], WEIGHTS["head.weight"])
    taken(source, make)
    assert make.count == 2


def test_other_weights_of_the_same_name_size_and_time_get_integers_of_their_own(source: Path) -> None:
    make = Maker()
    taken(source, make)
    before = packed_file(source)
    with_its_times(source, lambda: source.write_bytes(b"two" * 100))
    taken(source, make)
    assert make.count == 2
    assert packed_file(source) != before


def test_a_link_in_the_folder_of_integers_is_not_followed(source: Path, tmp_path: Path) -> None:
    make = Maker()
    taken(source, make)
    path = packed_file(source)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    taken(source, make)
    assert make.count == 2
    assert (tmp_path / "elsewhere").exists() and not path.is_symlink()


def test_whoever_is_killed_while_packing_leaves_nothing_that_stays(source: Path) -> None:
    root, make = source.parent.parent, Maker()
    if (child := os.fork()) == 0:
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        taken(source, make)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = packed_files(root, packed_stem(source.parent))
    assert any(path.stat().st_size > 300 for path in left)
    taken(source, make)
    assert [
        path for path in (root / "packed").iterdir() if path.suffix not in (".safetensors", ".lock")
    ] == []
    PackedHome.of(root, source.parent).clear()
    assert not list((root / "packed").iterdir())


def test_what_a_killed_packing_left_is_listed_and_removed_with_its_model(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    bare = catalog(root).entries()[1].num_bytes
    half = root / "packed" / f".{packed_stem(folder)}-dead.new"
    half.parent.mkdir()
    half.write_bytes(b"12345")
    assert catalog(root).entries()[1].num_bytes == bare + 5
    assert catalog(root).remove(folder.name) == bare + 5
    assert not half.exists()


def test_what_was_made_for_a_users_own_folder_can_be_removed(root: Path, model: Path) -> None:
    home = PackedHome.of(root, model)
    home.tensors(WeightsMode.INT8, [model / "model.safetensors"], Maker())
    num_bytes = sum(path.stat().st_size for path in (root / "packed").iterdir())
    assert catalog(root).remove(str(model)) == num_bytes > 300
    assert (model / "model.safetensors").exists()
    assert not list((root / "packed").iterdir())


def test_where_nothing_can_be_written_it_is_made_every_time(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = PackedHome(tmp_path / "file" / "packed", "stem", Contents(tmp_path / "file"))
    make = Maker()
    for _ in range(2):
        assert torch.equal(
            home.tensors(WeightsMode.INT8, [source], make)["head.weight"], WEIGHTS["head.weight"]
        )
    assert make.count == 2
