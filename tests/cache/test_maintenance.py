import json
import os
import subprocess
import sys
import time

import pytest

from kvchat.cache import removal
from kvchat.cache.folder import hold_lock
from kvchat.cache.maintenance import list_folders, read_tokens, verify_checksums
from kvchat.cache.removal import clear, prune, remove_bad
from kvchat.errors import KvchatError
from tests.cache.arena import TINY, name_of, store, stored_files, tiny_cache


@pytest.fixture
def root(tmp_path):
    """Two models: one with a chain of two files and a file of its own, one with one file."""
    root = tmp_path / "kv"
    cache = tiny_cache(root)
    for tokens in ([1] * 8, [1] * 8 + [2] * 8, [3] * 8):
        store(cache, tokens)
    cache.close()
    other = tiny_cache(root, codec="int8")
    store(other, [1] * 12)
    other.close()
    return root


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def num_bytes(root):
    return sum(path.stat().st_size for path in stored_files(root))


def test_listing_says_what_each_folder_holds(root):
    newest, oldest = list_folders(root)
    assert (newest.meta.codec, newest.num_files, newest.num_tokens) == ("int8", 1, 12)
    assert (oldest.meta.codec, oldest.num_files, oldest.num_tokens) == ("raw", 3, 24)
    assert oldest.meta.layout == TINY and newest.newest_s >= oldest.newest_s >= oldest.oldest_s > 0
    assert newest.num_bytes + oldest.num_bytes == num_bytes(root)
    assert json.loads(json.dumps(oldest.to_json()))["meta"]["codec"] == "raw"


def test_a_folder_with_a_damaged_description_is_listed_all_the_same(root):
    for content in ("", "[]", "{}", '{"described": 1, "layout": {}}'):
        for meta in root.glob("*/meta.json"):
            meta.write_text(content)
        assert [info.meta for info in list_folders(root)] == [None, None]


def test_a_missing_folder_is_an_empty_one(tmp_path):
    nowhere = tmp_path / "none"
    assert list_folders(nowhere) == [] and verify_checksums(nowhere).is_clean
    assert clear(nowhere).num_files == prune(nowhere, budget_bytes=0).num_files == 0
    assert not nowhere.exists()


def test_verifying_finds_exactly_the_damaged_files_and_changes_nothing(root):
    assert verify_checksums(root).is_clean and verify_checksums(root).num_blocks == 9
    first, second, *_ = stored_files(root)
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.write_bytes(b"")
    report = verify_checksums(root)
    assert {file.path for file in report.bad} == {first, second} and report.num_files == 4
    assert json.dumps(report.to_json()) and first.exists()
    assert remove_bad(root, report, dry_run=True).num_files == 2 and first.exists()
    assert remove_bad(root, report).num_files == 2
    assert verify_checksums(root).is_clean


def test_pruning_to_a_budget_frees_what_a_dry_run_has_said(root):
    total = num_bytes(root)
    for budget in (total, total - 1, 1000, 0):
        told = prune(root, budget_bytes=budget, dry_run=True)
        before = num_bytes(root)
        freed = prune(root, budget_bytes=budget)
        assert (freed.num_files, freed.num_bytes) == (told.num_files, told.num_bytes)
        assert freed.num_bytes == before - num_bytes(root) and num_bytes(root) <= budget


def test_pruning_by_age_keeps_what_a_younger_file_continues(root):
    for path in stored_files(root):
        age(path, 10_000)
    child = next(path for path in stored_files(root) if name_of(path).start)
    age(child, 0)
    assert prune(root, older_than_s=20_000).num_files == 0
    assert prune(root, older_than_s=5_000).num_files == 2
    assert tiny_cache(root, mode="ro").match([1] * 8 + [2] * 8).num_tokens == 16


def test_pruning_removes_orphans(root):
    parent = next(
        path
        for path in stored_files(root)
        if any(path.name[:32] == p.name[33:65] for p in stored_files(root))
    )
    parent.unlink()
    assert prune(root).num_files == 1
    assert prune(root).num_files == 0


def test_clearing_leaves_nothing_and_a_running_chat_goes_on(root):
    cache = tiny_cache(root, ram_bytes=0)
    assert cache.match([3] * 8).num_tokens == 8
    assert clear(root, dry_run=True).num_files == 4 == len(stored_files(root))
    freed = clear(root)
    assert freed.num_files == 4 and sorted(path.name for path in root.iterdir()) == [".lock", ".turn"]
    assert cache.match([3] * 8).num_tokens == 0
    store(cache, [3] * 8)
    assert cache.match([3] * 8).num_tokens == 8


def test_a_file_tells_all_its_tokens_from_the_root_on(root):
    assert sorted(map(read_tokens, stored_files(root))) == sorted(
        [(1,) * 8, (1,) * 8 + (2,) * 8, (3,) * 8, (1,) * 12]
    )


def test_a_folder_in_use_is_an_error_with_a_remedy(root, monkeypatch):
    monkeypatch.setattr(removal, "LOCK_TIMEOUT_S", 0.05)
    with hold_lock(root, 1), pytest.raises(KvchatError, match="try again"):
        clear(root)


def test_listing_verifying_and_pruning_load_no_torch(root):
    code = (
        "import sys; from pathlib import Path; from kvchat.cache.maintenance import *; from kvchat.cache.removal import *; root = Path(sys.argv[1]);"
        "list_folders(root), verify_checksums(root), prune(root, budget_bytes=10**9), clear(root, dry_run=True);"
        "import kvchat.cache.base, kvchat.cache.disk, kvchat.cache.ram, kvchat.cache.writer; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)


def test_the_folder_says_to_what_share_it_is_packed(tmp_path):
    shares = {}
    for codec in ("raw", "packed"):
        store(tiny_cache(tmp_path / codec, codec=codec), list(range(64)))
        (info,) = list_folders(tmp_path / codec)
        shares[codec] = info.share
    assert shares["packed"] < shares["raw"] - 0.1
