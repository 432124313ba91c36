"""Integer weights between runs: made once for a content, proved before they are used, and nothing left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kvchat.models.sources.contents import Contents
from kvchat.models.sources.installed import packed_files, packed_stem
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.packed import ALIGNMENT, PackedHome
from kvchat.models.weights.quantize import Plane
from tests.models.isolated import catalog
from tests.models.tiny_gguf import write_gguf

WEIGHTS = {
    "0.qkv/0": [Plane(torch.arange(192, dtype=torch.uint8).view(64, 3), torch.ones(1, 64, 2).bfloat16())],
    "head/0": [
        Plane(torch.full((64, 4), number, dtype=torch.uint8), torch.full((2, 64, 2), number).bfloat16())
        for number in (1, 2)
    ],
}


class Maker:
    """Makes some tensors and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Iterator[tuple[str, list[Plane]]]:
        self.count += 1
        yield from WEIGHTS.items()


def is_right(found: dict[str, list[Plane]]) -> bool:
    """Whether the very planes came back, in their order."""
    return found.keys() == WEIGHTS.keys() and all(
        torch.equal(plane.packed, made.packed) and torch.equal(plane.scales, made.scales)
        for name, planes in WEIGHTS.items()
        for plane, made in zip(found[name], planes, strict=True)
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"one" * 100)
    return path


def taken(source: Path, make: Maker) -> dict[str, list[Plane]]:
    home = PackedHome.of(source.parent.parent, source.parent)
    return home.planes(WeightsMode.INT8, [source], make)


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
        assert is_right(found)
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
    assert is_right(found)
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
    home.planes(WeightsMode.INT8, [model / "model.safetensors"], Maker())
    num_bytes = sum(path.stat().st_size for path in (root / "packed").iterdir())
    assert catalog(root).remove(str(model)) == num_bytes > 300
    assert (model / "model.safetensors").exists()
    assert not list((root / "packed").iterdir())


def test_where_nothing_can_be_written_it_is_made_every_time(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = PackedHome(tmp_path / "file" / "packed", "stem", Contents(tmp_path / "file"))
    make = Maker()
    for _ in range(2):
        assert is_right(home.planes(WeightsMode.INT8, [source], make))
    assert make.count == 2


def test_every_plane_begins_at_a_cache_line(source: Path) -> None:
    found = taken(source, Maker())
    for plane in (plane for planes in found.values() for plane in planes):
        assert plane.packed.data_ptr() % ALIGNMENT == plane.scales.data_ptr() % ALIGNMENT == 0


def test_what_is_made_is_written_before_the_next_is_made(source: Path) -> None:
    folder, sizes = source.parent.parent / "packed", []

    def make() -> Iterator[tuple[str, list[Plane]]]:
        for number in range(3):
            sizes.append(sum(path.stat().st_size for path in folder.glob(".*.new")))
            yield (
                f"{number}/0",
                [Plane(torch.zeros(64, 1 << 15, dtype=torch.uint8), torch.ones(1, 64, 2).bfloat16())],
            )

    PackedHome.of(source.parent.parent, source.parent).planes(WeightsMode.INT8, [source], make)
    assert sizes[2] - sizes[1] >= 1 << 21
