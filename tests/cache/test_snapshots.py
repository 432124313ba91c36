"""Snapshots in the tiers: found at the deepest stored point, proven by tokens, never wrong, never over budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from kvchat.cache.base import CacheSettings, Ended
from kvchat.cache.block import KVLayout, StateShape
from kvchat.cache.folder import rooted_files, scan_folder
from kvchat.cache.maintenance import list_folders, stored_tips, verify_checksums
from kvchat.cache.prefix_cache import PrefixCache
from tests.cache.arena import BLOCK_SIZE, TINY, computed_arena, empty_arena, is_equal, used_bytes

STATES = (StateShape((1, 3, 2), "float32"), StateShape((1, 5), "bfloat16"))
HYBRID = KVLayout(TINY.planes, TINY.dtype, STATES)
RECURRENT = KVLayout((), "float32", STATES)
LAYOUTS = pytest.mark.parametrize("layout", [HYBRID, RECURRENT], ids=["hybrid", "recurrent"])


def cache_of(
    layout: KVLayout, root: Path | None = None, warnings: list[str] | None = None, **changed: object
) -> PrefixCache:
    fields: dict[str, object] = {
        "ram_bytes": 2**20,
        "disk_bytes": 2**22,
        "disk_root": root,
        "block_size": BLOCK_SIZE,
    }
    warn = (lambda message: None) if warnings is None else warnings.append
    return PrefixCache(layout, b"a model", CacheSettings(**(fields | changed)), warn=warn)  # type: ignore[arg-type]


def states_of(tokens: Sequence[int]) -> list[torch.Tensor]:
    """States that no other tokens have, exact in their types."""
    mark = float(sum((place + 1) * token for place, token in enumerate(tokens)) % 256)
    return [torch.full((1, 3, 2), mark + len(tokens) / 1024), torch.full((1, 5), mark, dtype=torch.bfloat16)]


def planes_of(layout: KVLayout, tokens: Sequence[int]) -> list[torch.Tensor]:
    return computed_arena(tokens) if layout.planes else []


def keep(cache: PrefixCache, layout: KVLayout, tokens: Sequence[int], *, priority: int = 0) -> bool:
    """Store the blocks and the snapshot of all of `tokens`, and wait until they are written."""
    planes = planes_of(layout, tokens)
    committed = cache.commit(tokens, planes, len(tokens), states=states_of(tokens), priority=priority)
    assert cache.drain(20)
    cache.check_integrity()
    return committed.is_whole


def taken_up(cache: PrefixCache, layout: KVLayout, tokens: Sequence[int], start: int = 0) -> int:
    """How many of `tokens` can be taken up, after asserting that they are right; `start` of them are in the arena."""
    planes = empty_arena() if layout.planes else []
    for plane, right in zip(planes, planes_of(layout, tokens), strict=True):
        plane[:, :start] = right[:, :start]
    states = [torch.full_like(state, torch.nan) for state in states_of([])]
    match = cache.match(tokens)
    with cache.lease(match) as lease:
        loaded = cache.load(lease, planes, start, match.num_tokens, states=states)
    if loaded.end == 0:
        assert all(state.isnan().all() for state in states), "states were touched for nothing"
        return 0
    assert loaded.end == match.num_tokens
    assert is_equal(planes, planes_of(layout, tokens), 0, loaded.end)
    assert all(torch.equal(a, b) for a, b in zip(states, states_of(tokens[: loaded.end]), strict=True))
    return loaded.end


@LAYOUTS
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 11])
def test_a_snapshot_comes_back_from_ram_and_from_disk(layout: KVLayout, length: int, tmp_path: Path) -> None:
    tokens = list(range(10, 40))
    cache = cache_of(layout, tmp_path)
    assert keep(cache, layout, tokens[:length])
    assert taken_up(cache, layout, tokens) == length
    assert cache.match(tokens).state.tier == "ram"  # type: ignore[union-attr]
    cache.clear_ram()
    assert taken_up(cache, layout, tokens) == length
    cache.close()
    other = cache_of(layout, tmp_path)
    assert taken_up(other, layout, tokens) == length
    assert taken_up(other, layout, tokens[:length]) == length
    if length > 1:
        assert taken_up(other, layout, tokens[: length - 1]) == 0


@LAYOUTS
def test_the_deepest_snapshot_that_is_a_prefix_is_taken(layout: KVLayout, tmp_path: Path) -> None:
    tokens = list(range(10, 40))
    cache = cache_of(layout, tmp_path)
    for length in (6, 13, 21):
        keep(cache, layout, tokens[:length])
    keep(cache, layout, [*tokens[:7], *range(200, 216)])
    for clear in (False, True):
        if clear:
            cache.clear_ram()
        assert taken_up(cache, layout, tokens) == 21
        assert taken_up(cache, layout, tokens[:20]) == 13
        assert taken_up(cache, layout, [*tokens[:12], 99, *tokens[13:]]) == 6
        assert taken_up(cache, layout, [*tokens[:5], 99, *tokens[6:]]) == 0
        assert taken_up(cache, layout, tokens, start=9) == 21


@LAYOUTS
def test_a_hash_that_says_nothing_leads_to_no_wrong_hit(layout: KVLayout, tmp_path: Path) -> None:
    tokens = list(range(10, 30))
    cache = cache_of(layout, tmp_path, hash_function=lambda data: b"\1" * 16)
    for length in (4, 8, 9, 16):
        keep(cache, layout, tokens[:length])
    assert taken_up(cache, layout, tokens) == 16
    assert taken_up(cache, layout, [*tokens[:8], *range(50, 60)]) == 8
    assert taken_up(cache, layout, list(range(50, 70))) == 0
    cache.clear_ram()
    assert taken_up(cache, layout, list(range(50, 70))) == 0
    assert taken_up(cache, layout, tokens[:9]) in (0, 8, 9)  # files of one name replace each other


@LAYOUTS
def test_a_flipped_byte_anywhere_is_a_miss_and_one_warning(layout: KVLayout, tmp_path: Path) -> None:
    tokens = list(range(10, 21))
    size = 0
    for position in range(0, 4000, 97):
        root = tmp_path / str(position)
        keep(cache_of(layout, root), layout, tokens)
        (path,) = root.glob("*/*.state")
        content = bytearray(path.read_bytes())
        size = len(content)
        if position >= size:
            break
        content[position] ^= 0x55
        path.write_bytes(content)
        assert not verify_checksums(root).is_clean
        warnings: list[str] = []
        cache = cache_of(layout, root, warnings)
        assert taken_up(cache, layout, tokens) == 0
        assert len(warnings) == 1
        assert cache.match(tokens).ended is Ended.CORRUPT
    assert size > 200


@LAYOUTS
def test_a_truncated_or_swapped_file_is_a_miss(layout: KVLayout, tmp_path: Path) -> None:
    tokens, others = list(range(10, 21)), list(range(50, 61))
    cache = cache_of(layout, tmp_path)
    keep(cache, layout, tokens)
    (mine,) = tmp_path.glob("*/*.state")
    keep(cache, layout, others)
    (theirs,) = set(tmp_path.glob("*/*.state")) - {mine}
    cache.close()
    content = mine.read_bytes()
    theirs.write_bytes(content)
    assert taken_up(cache_of(layout, tmp_path), layout, others) == 0
    mine.write_bytes(content[:-1])
    assert taken_up(cache_of(layout, tmp_path), layout, tokens) == 0


@LAYOUTS
def test_neither_budget_is_passed_and_what_remains_is_right(layout: KVLayout, tmp_path: Path) -> None:
    cache = cache_of(layout, tmp_path, ram_bytes=6000, disk_bytes=8_000)
    for number in range(30 if layout.planes else 60):
        tokens = [number, *range(10, 10 + number % 13)]
        keep(cache, layout, tokens)
        assert used_bytes(cache) <= 6000
        scan = scan_folder(tmp_path)
        assert scan.num_bytes <= 8_000
        assert len(rooted_files(scan.files)) == len(scan.files), "a snapshot without its blocks"
        assert taken_up(cache, layout, tokens) in (0, len(tokens))
    assert taken_up(cache, layout, tokens) == len(tokens)
    assert cache.stats.process.evicted_files > 0


@LAYOUTS
def test_without_ram_snapshots_go_to_the_disk_alone(layout: KVLayout, tmp_path: Path) -> None:
    cache = cache_of(layout, tmp_path, ram_bytes=0)
    tokens = list(range(10, 21))
    assert keep(cache, layout, tokens)
    assert used_bytes(cache) == 0
    assert taken_up(cache, layout, tokens) == 11


@LAYOUTS
def test_what_can_not_be_stored_is_said_to_be_so(layout: KVLayout, tmp_path: Path) -> None:
    assert not keep(cache_of(layout, None, ram_bytes=0), layout, [1, 2, 3])
    keep(cache_of(layout, tmp_path), layout, [1, 2, 3, 4, 5])
    reader = cache_of(layout, tmp_path, mode="ro")
    assert not keep(reader, layout, [1, 2, 3, 4, 5, 6])
    assert taken_up(reader, layout, [1, 2, 3, 4, 5, 6]) == 5
    assert cache_of(layout, tmp_path, mode="off").match([1, 2, 3, 4, 5]).num_tokens == 0


@LAYOUTS
def test_an_evicted_snapshot_is_told_from_new_text(layout: KVLayout) -> None:
    cache = cache_of(layout)
    assert cache.match([1, 2, 3]).ended is Ended.FIRST_USE
    keep(cache, layout, list(range(9)))
    assert cache.match([7, 7, 7]).ended is Ended.NEW_TEXT
    assert cache.match(list(range(9))).ended is Ended.COMPLETE
    cache.clear_ram()
    assert cache.match(list(range(9))).ended is Ended.EVICTED


def test_a_snapshot_that_is_used_outlives_one_that_is_not(tmp_path: Path) -> None:
    layout = RECURRENT
    size = cache_of(layout)._encoding.state_bytes
    cache = cache_of(layout, None, ram_bytes=8 * size)
    keep(cache, layout, [1])
    keep(cache, layout, [2], priority=1)
    for number in range(10, 20):
        keep(cache, layout, [number])
        assert taken_up(cache, layout, [1, 3]) == 1
    assert taken_up(cache, layout, [2, 3]) == 1
    assert taken_up(cache, layout, [10, 3]) == 0


@LAYOUTS
def test_a_snapshot_is_pinned_while_it_is_leased(layout: KVLayout) -> None:
    cache = cache_of(layout)
    tokens = list(range(9))
    keep(cache, layout, tokens)
    match = cache.match(tokens)
    with cache.lease(match):
        cache.clear_ram()
        assert cache.match(tokens).num_tokens == 9
    cache.clear_ram()
    assert cache.match(tokens).num_tokens == 0
    with cache.lease(match) as lease:
        assert lease.num_tokens == 0


@LAYOUTS
def test_the_folder_says_what_it_holds(layout: KVLayout, tmp_path: Path) -> None:
    cache = cache_of(layout, tmp_path)
    tokens = list(range(9))
    keep(cache, layout, tokens)
    (info,) = list_folders(tmp_path)
    assert (info.num_snapshots, info.num_tokens) == (1, 8 if layout.planes else 0)
    assert verify_checksums(tmp_path).is_clean
    assert (cache.root.hex(), cache.tip(tokens)) in stored_tips(tmp_path)
