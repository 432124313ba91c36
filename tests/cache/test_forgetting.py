"""Which stored file goes first, and that all processes say the same."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvchat.cache.folder import NOTE_NAME, scan_folder
from kvchat.cache.forgetting import eviction_order
from kvchat.cache.rates import Rates
from kvchat.cache.removal import clear, prune
from kvchat.cache.uses import USES_NAME, UseLog
from tests.cache.arena import TINY_BLOCK_BYTES, name_of, store, stored_files, tiny_cache

HOUR_S = 3600.0
BUDGET = 30 * TINY_BLOCK_BYTES


class Clock:
    """A time that is set by hand, in place of the system's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = time.time()
        monkeypatch.setattr(time, "time", lambda: self.now_s)
        monkeypatch.setattr(time, "time_ns", lambda: int(self.now_s * 1e9))


def disk_cache(root: Path, **changed: object):
    """A cache whose only tier is the disk, with room for three files of 32 tokens."""
    return tiny_cache(root, ram_bytes=0, **{"disk_bytes": BUDGET, **changed})


def held(cache, numbers) -> list[int]:
    return [number for number in numbers if cache.match([number] * 32).num_tokens]


def learn(root: Path, clock: Clock) -> None:
    """Conversations of one turn never went on; those that went on within a minute always did."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    log, rates = UseLog(root), Rates()
    for number in range(60):
        clock.now_s += HOUR_S
        for turns, later_s in (([1], HOUR_S), ([2, 3, 4, 5, 6], 60)):
            for end in range(1, len(turns) + 1):
                hashes = [bytes([turns[0], turn, number]) * 5 + b"." for turn in turns[:end]]
                use = rates.seen(hashes, clock.now_s)
                rates.take(use)
                log.append(use)
                clock.now_s += later_s


def often_and_once(clock: Clock, cache) -> None:
    """An older conversation of several turns, and a younger one of a single one."""
    for end in (8, 16, 24, 32):
        clock.now_s += 60
        store(cache, [1] * end)
    clock.now_s += HOUR_S
    store(cache, [2] * 32)
    clock.now_s += HOUR_S


@pytest.mark.parametrize(("policy", "kept"), [("kvchat", [1, 3]), ("lru", [2, 3])])
def test_what_was_gone_on_with_often_outlives_what_was_used_later(tmp_path, monkeypatch, policy, kept):
    root, clock = tmp_path / "kv", Clock(monkeypatch)
    if policy == "kvchat":
        learn(root, clock)
    cache = disk_cache(root, disk_bytes=2**30, policy=policy)
    often_and_once(clock, cache)
    size = scan_folder(root).num_bytes
    cache.close()
    cache = disk_cache(root, disk_bytes=size, policy=policy)
    store(cache, [3] * 8)
    whole = [number for number in (1, 2) if cache.match([number] * 32).num_tokens == 32]
    assert [*whole, 3] == kept and cache.match([3] * 8).num_tokens == 8
    assert (root / USES_NAME).exists() == (policy == "kvchat")


SAY_ORDER = """
import sys
from pathlib import Path
from kvchat.cache.folder import scan_folder
from kvchat.cache.forgetting import eviction_order
root = Path(sys.argv[1])
print(*[file.name.key for file in eviction_order(scan_folder(root).files, root)])
"""


def test_another_process_says_the_same_order_from_what_this_one_learned(tmp_path):
    root = tmp_path / "kv"
    cache = disk_cache(root, disk_bytes=2**30)
    for number in range(12):
        for end in range(8, 40, 8):
            if number % 3 or end == 8:
                store(cache, [number] * end)
    mine = [file.name.key for file in eviction_order(scan_folder(root).files, root)]
    said = subprocess.run(
        [sys.executable, "-c", SAY_ORDER, str(root)], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == mine and len(mine) == len(stored_files(root))


def test_what_another_process_used_is_heard_of_and_stays(tmp_path):
    root = tmp_path / "kv"
    cache, other = disk_cache(root), disk_cache(root, block_size=8)
    for number in (1, 2, 3):
        store(cache, [number] * 32)
    store(tiny_cache(root, ram_bytes=0, disk_bytes=BUDGET), [1] * 32)
    store(other, [4] * 32)
    assert held(cache, (1, 2, 3)) == [1, 3] and held(other, (4,)) == [4]


def test_dearer_models_files_outlive_cheaper_ones_of_the_same_age(tmp_path):
    root = tmp_path / "kv"
    cheap, dear = disk_cache(root), disk_cache(root, block_size=8)
    for cache, token_s in ((cheap, 0.0001), (dear, 0.01)):
        cache.keep_note(json.dumps({"token_s": token_s}).encode())
        assert cache.drain(20)
    store(dear, [1] * 32)
    store(cheap, [2] * 32)
    store(cheap, [3] * 32)
    store(cheap, [4] * 32)
    assert held(dear, (1,)) == [1] and held(cheap, (2, 3, 4)) == [3, 4]


@pytest.mark.parametrize("note", [b"", b"[]", b'{"token_s": "x"}', b'{"token_s": -1}', b'{"token_s": 1e999}'])
def test_a_note_that_says_no_cost_is_as_good_as_none(tmp_path, note):
    root = tmp_path / "kv"
    cache = disk_cache(root)
    for number in (1, 2, 3):
        store(cache, [number] * 32)
    (stored_files(root)[0].parent / NOTE_NAME).write_bytes(note)
    store(cache, [4] * 32)
    assert held(cache, (1, 2, 3, 4)) == [2, 3, 4]


def test_without_a_log_the_files_times_count(tmp_path):
    root = tmp_path / "kv"
    cache = disk_cache(root, disk_bytes=2**30)
    for number in (1, 2, 3):
        store(cache, [number] * 32)
    (root / USES_NAME).unlink()
    newest = next(path for path in stored_files(root) if name_of(path).first == name_of_first(cache, 1))
    os.utime(newest, (time.time() + 1,) * 2)
    cache = disk_cache(root)
    store(cache, [4] * 32)
    assert held(cache, (1, 2, 3, 4)) == [1, 3, 4]


def name_of_first(cache, number: int) -> str:
    return cache.match([number] * 32).chain.hashes[0].hex()


def test_pruning_to_a_budget_removes_what_the_policy_says(tmp_path, monkeypatch):
    root, clock = tmp_path / "kv", Clock(monkeypatch)
    learn(root, clock)
    cache = disk_cache(root, disk_bytes=2**30)
    often_and_once(clock, cache)
    budget = scan_folder(root).num_bytes - 1
    assert prune(root, budget_bytes=budget, dry_run=True) == prune(
        root, budget_bytes=budget, policy="kvchat", dry_run=True
    )
    prune(root, budget_bytes=budget)
    assert held(cache, (1, 2)) == [1]


def test_what_is_removed_leaves_no_hash_in_the_log(tmp_path):
    root = tmp_path / "kv"
    cache = disk_cache(root, disk_bytes=2**30)
    store(cache, [1] * 32)
    store(cache, [2] * 32)
    last = [cache.match([number] * 32).chain.hashes[-1] for number in (1, 2)]
    assert all(digest in (root / USES_NAME).read_bytes() for digest in last)
    prune(root, budget_bytes=scan_folder(root).num_bytes - 1)
    content = (root / USES_NAME).read_bytes()
    assert [digest in content for digest in last] == [False, True] and len(UseLog(root).new()) == 2
    clear(root)
    assert not (root / USES_NAME).exists()


def test_a_new_process_knows_in_ram_too_what_was_learned(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    clock.now_s -= 1000 * HOUR_S
    learn(tmp_path / "kv", clock)
    monkeypatch.undo()
    told, fresh = tiny_cache(tmp_path / "kv"), tiny_cache()
    for cache in (told, fresh):
        store(cache, [1] * 32)
    assert told.forecast().chance < fresh.forecast().chance
