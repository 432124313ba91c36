import errno
import os
import random
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvchat.cache.base import CacheSettings, Ended
from kvchat.cache.block import Chains
from kvchat.cache.disk import DiskTier
from kvchat.cache.entry import NO_PARENT, EntryName, FolderMeta
from kvchat.cache.folder import (
    StoredFile,
    default_disk_bytes,
    hold_lock,
    open_new,
    rooted_files,
    scan_folder,
)
from kvchat.cache.forgetting import eviction_order
from kvchat.cache.maintenance import verify_checksums
from kvchat.cache.stats import StatsCounter
from tests.cache.arena import (
    BLOCK_SIZE,
    TINY,
    TINY_BLOCK_BYTES,
    computed_arena,
    load,
    store,
    stored_files,
    tiny_cache,
)

TOKENS = list(range(100, 140))


def disk_cache(root: Path, warnings: list[str] | None = None, **changed: object):
    """A cache whose only tier is the disk."""
    return tiny_cache(root, warnings, ram_bytes=0, lock_timeout_s=0.3, **changed)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """One byte flipped, or the end cut off."""
    at = chance.randrange(len(content))
    if chance.random() < 0.3:
        return content[:at]
    return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]


@pytest.mark.parametrize("codec", ["raw", "packed"])
@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_flips_and_truncations_give_no_wrong_answer_and_no_crash(tmp_path, times, codec):
    chance = random.Random(1)
    root = tmp_path / "kv"
    cache = disk_cache(root, codec=codec)
    for end in (12, 24, 40):
        store(cache, TOKENS[:end])
    whole = {path: path.read_bytes() for path in stored_files(root)}
    num_short = 0
    for _ in range(times):
        path = chance.choice(list(whole))
        path.write_bytes(damaged(whole[path], chance))
        warnings: list[str] = []
        num_short += load(disk_cache(root, warnings, mode="ro"), TOKENS).end < 40
        assert len(warnings) <= 1
        path.write_bytes(whole[path])
    assert num_short > 0.95 * times
    assert load(disk_cache(root), TOKENS).end == 40


def test_a_bad_file_is_deleted_and_stored_again(tmp_path):
    root = tmp_path / "kv"
    store(disk_cache(root), TOKENS)
    (path,) = stored_files(root)
    path.write_bytes(path.read_bytes()[:-1])
    warnings: list[str] = []
    cache = disk_cache(root, warnings)
    assert cache.match(TOKENS).num_tokens == 0 and cache.match(TOKENS).ended is Ended.CORRUPT
    assert len(warnings) == 1 and not path.exists() and cache.stats.process.corrupt_files == 1
    store(cache, TOKENS)
    assert load(cache, TOKENS).tokens == {"disk": 40} and len(warnings) == 1


def test_a_file_of_a_later_version_is_a_miss_and_stays(tmp_path):
    root = tmp_path / "kv"
    store(disk_cache(root), TOKENS)
    (path,) = stored_files(root)
    content = bytearray(path.read_bytes())
    content[8] = 200
    path.write_bytes(content)
    warnings: list[str] = []
    assert disk_cache(root, warnings).match(TOKENS).num_tokens == 0
    assert len(warnings) == 1 and path.exists()


def test_foreign_files_and_folders_do_no_harm(tmp_path):
    root = tmp_path / "kv"
    store(disk_cache(root), TOKENS)
    (path,) = stored_files(root)
    (path.parent / "notes.txt").write_text("hello")
    (path.parent / "x.kv").write_text("hello")
    (root / ("f" * 32)).write_text("a file where a folder might be")
    path.with_name(str(path.name).replace(path.name[:32], "a" * 32)).mkdir()
    other = EntryName.parse(path.name)
    assert other is not None
    path.with_name(path.name.replace("+40-0.kv", "+36-0.kv")).write_bytes(path.read_bytes())
    assert load(disk_cache(root), TOKENS).end == 40
    assert (path.parent / "notes.txt").exists()


def test_a_file_that_was_moved_from_another_model_is_a_miss(tmp_path):
    root = tmp_path / "kv"
    store(disk_cache(root, block_size=8), TOKENS)
    (other,) = stored_files(root)
    cache = disk_cache(root)
    store(cache, [1] * 8)
    mine = next(path for path in stored_files(root) if path != other)
    mine.write_bytes(other.read_bytes())
    assert disk_cache(root).match([1] * 8).num_tokens == 0


def test_files_and_folders_are_private(tmp_path):
    root = tmp_path / "a" / "kv"
    store(disk_cache(root), TOKENS)
    for path in (root, *root.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_file_that_vanishes_between_match_and_load_is_a_miss(tmp_path):
    warnings: list[str] = []
    cache = disk_cache(tmp_path / "kv", warnings)
    store(cache, TOKENS)
    match = cache.match(TOKENS)
    stored_files(tmp_path / "kv")[0].unlink()
    with cache.lease(match) as lease:
        assert cache.load(lease, computed_arena([]), 0, 40).end == 0
    assert cache.match(TOKENS).ended is Ended.EVICTED and not warnings


def test_a_file_that_another_process_has_replaced_is_read_by_its_own_header(tmp_path):
    cache = disk_cache(tmp_path / "kv")
    store(cache, TOKENS)
    match = cache.match(TOKENS)
    stored_files(tmp_path / "kv")[0].unlink()
    other = disk_cache(tmp_path / "kv")
    shifted = [plane + 1 for plane in computed_arena(TOKENS)]
    other.commit(TOKENS, shifted, 40)
    assert other.drain(10)
    planes = computed_arena([])
    with cache.lease(match) as lease:
        assert cache.load(lease, planes, 0, 40).end == 40
    assert (planes[0][:, :40] == shifted[0][:, :40]).all()


def test_one_process_sees_at_once_what_another_stored(tmp_path):
    one, two = disk_cache(tmp_path / "kv"), disk_cache(tmp_path / "kv")
    for number in range(20):
        tokens = [number] * 8
        assert two.match(tokens).num_tokens == 0
        store(one, tokens)
        assert two.match(tokens).num_tokens == 8


def test_the_budget_holds_for_all_models_together(tmp_path):
    budget = 30 * TINY_BLOCK_BYTES
    root = tmp_path / "kv"
    for number in range(30):
        kind = {"block_size": [4, 8][number % 2], "codec": ["raw", "packed"][number // 2 % 2]}
        cache = disk_cache(root, disk_bytes=budget, **kind)
        store(cache, [number] * 16)
        cache.close()
        assert scan_folder(root).num_bytes <= budget
    assert len(stored_files(root)) > 3
    assert verify_checksums(root).is_clean


def test_what_is_too_large_for_the_budget_is_not_stored_and_evicts_nothing_in_vain(tmp_path):
    cache = disk_cache(tmp_path / "kv", disk_bytes=15 * TINY_BLOCK_BYTES)
    store(cache, [5] * 8)
    store(cache, TOKENS[:20])
    store(cache, TOKENS + list(range(400, 424)))
    assert load(cache, TOKENS).end == 20 and load(cache, [5] * 8).end == 8


def test_the_least_recently_used_file_goes_first(tmp_path):
    cache = disk_cache(tmp_path / "kv", disk_bytes=30 * TINY_BLOCK_BYTES)
    for number in range(1, 4):
        store(cache, [number] * 32)
    store(cache, [1] * 32)
    store(cache, [9] * 32)
    assert [cache.match([number] * 32).num_tokens for number in (1, 2, 3, 9)] == [32, 0, 32, 32]


def test_a_file_is_never_evicted_for_its_own_child(tmp_path):
    cache = tiny_cache(tmp_path / "kv", disk_bytes=26 * TINY_BLOCK_BYTES)
    store(cache, [1] * 32)
    store(cache, [2] * 32)
    store(cache, [1] * 64)
    cache.clear_ram()
    assert load(cache, [1] * 64).end == 64 and cache.match([2] * 32).num_tokens == 0


def test_no_orphan_is_written(tmp_path):
    meta = FolderMeta(TINY, "raw", BLOCK_SIZE, TINY_BLOCK_BYTES)
    warnings: list[str] = []
    settings = CacheSettings(disk_root=tmp_path / "kv", disk_bytes=2**20)
    disk = DiskTier(settings, b"d" * 16, meta, stats=StatsCounter(), warn=warnings.append)
    chain = Chains(b"d" * 16, BLOCK_SIZE).blocks(TOKENS)
    payload = np.zeros(5 * TINY_BLOCK_BYTES, dtype=np.uint8)
    assert not disk.store(chain, 5, payload) and not stored_files(tmp_path / "kv") and not warnings
    assert disk.store(chain.prefix(5), 0, payload) and disk.store(chain, 5, payload)
    assert disk.match(chain)[-1].end == 10


def test_a_higher_priority_stays_and_can_be_given_later(tmp_path):
    cache = disk_cache(tmp_path / "kv", disk_bytes=30 * TINY_BLOCK_BYTES)
    store(cache, [1] * 32)
    store(cache, [1] * 32, priority=5)
    for number in range(2, 9):
        store(cache, [number] * 32)
    assert cache.match([1] * 32).num_tokens == 32
    assert load(disk_cache(tmp_path / "kv"), [1] * 32).end == 32


@pytest.mark.parametrize("jump_s", [-10 * 365 * 86400, 50 * 365 * 86400])
def test_a_clock_that_jumps_keeps_the_order_of_use(tmp_path, monkeypatch, jump_s):
    cache = disk_cache(tmp_path / "kv", disk_bytes=30 * TINY_BLOCK_BYTES)
    for number in range(1, 4):
        store(cache, [number] * 32)
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + jump_s * 10**9)
    store(cache, [4] * 32)
    monkeypatch.undo()
    store(cache, [5] * 32)
    held = [number for number in range(1, 6) if cache.match([number] * 32).num_tokens]
    assert held == [3, 4, 5]


def test_a_file_from_the_future_is_not_kept_for_ever(tmp_path):
    root = tmp_path / "kv"
    cache = disk_cache(root, disk_bytes=30 * TINY_BLOCK_BYTES)
    store(cache, [1] * 32)
    os.utime(stored_files(root)[0], (time.time() + 1e9,) * 2)
    for number in range(2, 8):
        store(cache, [number] * 32)
    assert cache.match([1] * 32).num_tokens == 0


def test_what_dead_writers_left_is_gone_after_the_next_start(tmp_path):
    root = tmp_path / "kv"
    store(disk_cache(root), TOKENS)
    left = stored_files(root)[0].with_name("f" * 32 + ".tmp")
    left.write_bytes(b"half")
    disk_cache(root)
    assert not left.exists() and len(stored_files(root)) == 1


def full_disk(path: Path) -> BinaryIO:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_makes_the_tier_quiet_with_one_warning(tmp_path):
    root = tmp_path / "kv"
    store(disk_cache(root), TOKENS)
    warnings: list[str] = []
    cache = disk_cache(root, warnings, open_new=full_disk)
    for number in range(3):
        store(cache, [number] * 8)
    assert len(warnings) == 1 and "No space" in warnings[0]
    assert load(cache, TOKENS).end == 40 and len(stored_files(root)) == 1


def test_a_disk_that_fills_up_in_mid_file_leaves_nothing_half_written(tmp_path):
    class Filling:
        def __init__(self, path: Path) -> None:
            self.file = open_new(path)
            self.num_writes = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, part):
            self.num_writes += 1
            if self.num_writes > 1:
                raise OSError(errno.ENOSPC, "full")
            return self.file.write(part[:10])

        def fileno(self):
            return self.file.fileno()

    warnings: list[str] = []
    cache = disk_cache(tmp_path / "kv", warnings, open_new=Filling)
    store(cache, TOKENS)
    assert len(warnings) == 1
    assert not list((tmp_path / "kv").rglob("*.tmp")) and not stored_files(tmp_path / "kv")


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path):
    (tmp_path / "kv").write_text("a file is in its place")
    warnings: list[str] = []
    cache = tiny_cache(tmp_path / "kv", warnings)
    for number in range(3):
        store(cache, [number] * 8)
    assert len(warnings) == 1
    assert load(cache, [2] * 8).tokens == {"ram": 8}


def test_a_folder_that_was_deleted_is_made_again(tmp_path):
    warnings: list[str] = []
    cache = disk_cache(tmp_path / "kv", warnings)
    store(cache, TOKENS)
    for path in sorted((tmp_path / "kv").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "kv").rmdir()
    assert cache.match(TOKENS).num_tokens == 0
    store(cache, TOKENS)
    assert load(cache, TOKENS).end == 40 and not warnings


def test_a_lock_that_is_held_costs_the_write_and_one_warning(tmp_path):
    root = tmp_path / "kv"
    warnings: list[str] = []
    cache = disk_cache(root, warnings)
    store(cache, TOKENS[:8])
    with hold_lock(root, 1):
        store(cache, TOKENS)
        store(cache, [1] * 8)
        assert load(cache, TOKENS).end == 8
    assert len(warnings) == 1 and "lock" in warnings[0]
    store(cache, TOKENS)
    assert load(cache, TOKENS).end == 40


def test_the_default_budget_is_bounded_and_needs_no_folder(tmp_path):
    assert 0 < default_disk_bytes(tmp_path / "not" / "yet") <= 4 * 2**30


def a_file(key: int, parent: int, mtime: int, priority: int = 0) -> StoredFile:
    name = EntryName(f"{key:032x}", f"{parent:032x}", "1" * 32, "2" * 32, 0, 4, priority)
    return StoredFile(Path("kv") / ("d" * 32), name, 10, mtime)


FILES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(0, 2)), max_size=12).map(
    lambda rows: [a_file(number, parent, *rest) for number, (parent, *rest) in enumerate(rows, 1)]
)


@pytest.mark.parametrize("policy", ["kvchat", "lru"])
@given(files=FILES)
def test_orphans_go_first_and_no_parent_goes_before_its_child(policy, files):
    order = list(eviction_order(files, Path("nowhere"), policy))
    rooted = rooted_files(files)
    assert sorted(map(str, order)) == sorted(map(str, files))
    assert [file.id in rooted for file in order] == sorted(file.id in rooted for file in order)
    gone: set[tuple[str, str]] = set()
    for file in order:
        gone.add(file.id)
        below = [child.id for child in files if child.parent_id == file.id and child.id in rooted]
        assert file.id not in rooted or gone.issuperset(below)


def test_among_leaves_priority_comes_before_time_for_the_least_recently_used():
    files = [a_file(1, 0, 5, 0), a_file(2, 0, 1, 1), a_file(3, 0, 4, 0), a_file(4, 99, 9, 9)]
    assert [int(file.name.key, 16) for file in eviction_order(files, Path("nowhere"), "lru")] == [4, 3, 1, 2]


def test_names_survive_parsing_and_others_are_refused():
    name = EntryName("a" * 32, NO_PARENT, "b" * 32, "c" * 32, 12, 3, -1)
    assert EntryName.parse(str(name)) == name
    for text in ("", "x.kv", str(name)[:-1], str(name) + ".tmp", str(name).upper(), "../" + str(name)):
        assert EntryName.parse(text) is None
