"""What one process knows of the folder between its writes, and what of it goes."""

import os
import time
from pathlib import Path

from kvchat.cache.folder import hold_lock, scan_folder, turn_of
from tests.cache.arena import TINY_BLOCK_BYTES, load, store, stored_files, tiny_cache

BUDGET = 30 * TINY_BLOCK_BYTES


def disk_cache(root: Path, **changed: object):
    """A cache whose only tier is the disk, with room for three files of 32 tokens."""
    return tiny_cache(root, ram_bytes=0, **{"disk_bytes": BUDGET, **changed})


def held(cache, numbers) -> list[int]:
    return [number for number in numbers if cache.match([number] * 32).num_tokens]


def test_what_another_process_used_does_not_go_first(tmp_path):
    root = tmp_path / "kv"
    cache = disk_cache(root)
    for number in (1, 2, 3):
        store(cache, [number] * 32)
    first = min(stored_files(root), key=lambda path: path.stat().st_mtime_ns)
    os.utime(first, (time.time() + 1,) * 2)
    store(cache, [4] * 32)
    assert held(cache, (1, 2, 3, 4)) == [1, 3, 4]


def test_two_writers_in_turn_never_pass_the_budget(tmp_path):
    root = tmp_path / "kv"
    caches = [disk_cache(root), disk_cache(root, block_size=8)]
    for number in range(12):
        store(caches[number % 2], [number] * 32)
        assert scan_folder(root).num_bytes <= BUDGET
    assert len(stored_files(root)) >= 3


def test_each_holder_of_the_lock_has_a_turn_of_its_own(tmp_path):
    with hold_lock(tmp_path, 1) as first:
        pass
    with hold_lock(tmp_path, 1) as second:
        assert (second, turn_of(tmp_path)) == (first + 1, second)


def test_a_turn_that_cannot_be_counted_costs_a_listing_and_nothing_else(tmp_path):
    root = tmp_path / "kv"
    cache, other = disk_cache(root), disk_cache(root)
    store(cache, [1] * 32)
    (root / ".turn").unlink()
    (root / ".turn").mkdir()
    store(other, [2] * 32)
    store(cache, [3] * 32)
    assert held(cache, (1, 2, 3)) == held(other, (1, 2, 3)) == [1, 2, 3]
    store(cache, [4] * 32)
    assert scan_folder(root).num_bytes <= BUDGET


def test_the_children_of_a_lost_file_go_first(tmp_path):
    root = tmp_path / "kv"
    cache = disk_cache(root)
    store(cache, [1] * 16)
    store(cache, [1] * 32)
    store(cache, [2] * 32)
    next(path for path in stored_files(root) if "-0+16-" in path.name).unlink()
    assert cache.match([1] * 32).num_tokens == 0
    store(cache, [3] * 32)
    store(cache, [4] * 32)
    assert held(cache, (1, 2, 3, 4)) == [2, 3, 4]
    assert not any("-16+16-" in path.name for path in stored_files(root))


def test_what_an_earlier_version_stored_is_dropped_without_a_word(tmp_path):
    root = tmp_path / "kv"
    folder = root / ("e" * 32)
    folder.mkdir(parents=True, mode=0o700)
    root.chmod(0o700)
    name = "-".join(["a" * 32, "0" * 32, "b" * 32, "c" * 32])
    for text in (f"{name}-0-10-0.kv", f"{name}-10-1-2.state"):
        (folder / text).write_bytes(b"old")
    (folder / "notes.txt").write_text("mine")
    warnings: list[str] = []
    tiny_cache(root, warnings)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"] and not warnings


def test_a_file_carries_its_own_tokens_alone(tmp_path):
    root = tmp_path / "kv"
    cache = tiny_cache(root, ram_bytes=0, block_size=1)
    tokens: list[int] = []
    for turn in range(6):
        tokens += [turn] * 8
        store(cache, tokens)
    sizes = [path.stat().st_size for path in stored_files(root)]
    assert len(stored_files(root)) == 6 and max(sizes) - min(sizes) < 8
    assert load(cache, tokens).end == 48
