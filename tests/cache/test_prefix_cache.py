import threading

import pytest

from kvchat.cache.base import CacheSettings, Ended
from kvchat.config import ByteSize, CacheConfig
from tests.cache.arena import (
    BLOCK_SIZE,
    TINY_BLOCK_BYTES,
    computed_arena,
    empty_arena,
    load,
    name_of,
    store,
    stored_files,
    tiny_cache,
    used_bytes,
)

TOKENS = list(range(100, 150))
TIERS = pytest.mark.parametrize("tier", ["ram", "disk"])


def cache_with(tier, tmp_path, **changed):
    return tiny_cache() if tier == "ram" else tiny_cache(tmp_path / "kv", ram_bytes=0, **changed)


@TIERS
def test_what_was_committed_comes_back_in_whole_blocks(tier, tmp_path):
    cache = cache_with(tier, tmp_path)
    store(cache, TOKENS)
    assert load(cache, TOKENS).end == 48
    assert cache.match([*TOKENS, 1, 2]).num_tokens == 48
    assert cache.match(TOKENS[:20] + [7] * 9).num_tokens == 20


@TIERS
@pytest.mark.parametrize("length", [15, 16, 17])
def test_lengths_at_a_block_boundary_and_one_either_side(tier, tmp_path, length):
    cache = cache_with(tier, tmp_path)
    cache.commit(TOKENS, computed_arena(TOKENS), length)
    assert cache.drain(10)
    assert load(cache, TOKENS).end == length // BLOCK_SIZE * BLOCK_SIZE


@TIERS
@pytest.mark.parametrize("start", [0, 3, 4, 5])
@pytest.mark.parametrize("end", [11, 12, 13])
def test_loading_is_exact_to_the_token(tier, tmp_path, start, end):
    cache = cache_with(tier, tmp_path)
    store(cache, TOKENS)
    assert load(cache, TOKENS, start, end).end == end


def test_committing_again_stores_only_what_is_new():
    cache = tiny_cache()
    planes = computed_arena(TOKENS)
    assert cache.commit(TOKENS, planes, 20).num_blocks == 5
    assert cache.commit(TOKENS, planes, 20).num_blocks == 0
    assert cache.commit(TOKENS, planes, 31).num_blocks == 2
    assert used_bytes(cache) == 7 * TINY_BLOCK_BYTES


def test_forks_store_what_they_have_in_common_once(tmp_path):
    cache = tiny_cache(tmp_path / "kv")
    forks = [TOKENS[:40] + [number] * 8 for number in range(5)]
    for tokens in forks:
        store(cache, tokens)
    assert used_bytes(cache) == (10 + 5 * 2) * TINY_BLOCK_BYTES
    num_tokens = sum(name_of(path).num_tokens for path in stored_files(tmp_path / "kv"))
    assert num_tokens == (10 + 5 * 2) * BLOCK_SIZE
    assert all(load(cache, tokens).tokens == {"ram": 48} for tokens in forks)
    cache.clear_ram()
    assert all(load(cache, tokens).tokens == {"disk": 48} for tokens in forks)


def test_another_process_life_finds_it_on_disk(tmp_path):
    first = tiny_cache(tmp_path / "kv")
    store(first, TOKENS)
    assert first.close()
    loaded = load(tiny_cache(tmp_path / "kv"), TOKENS)
    assert loaded.tokens == {"disk": 48}


def test_ram_and_disk_share_a_chain_when_ram_is_small(tmp_path):
    cache = tiny_cache(tmp_path / "kv", ram_bytes=6 * TINY_BLOCK_BYTES)
    store(cache, TOKENS)
    loaded = load(cache, TOKENS)
    assert loaded.tokens == {"ram": 20, "disk": 28}
    assert used_bytes(cache) <= 6 * TINY_BLOCK_BYTES


def test_another_codec_block_size_or_fingerprint_is_another_chain(tmp_path):
    store(tiny_cache(tmp_path / "kv"), TOKENS)
    for changed in ({"codec": "int8"}, {"block_size": 8}):
        assert tiny_cache(tmp_path / "kv", **changed).match(TOKENS).num_tokens == 0
    assert tiny_cache(tmp_path / "kv").match(TOKENS).num_tokens == 48


def test_a_constant_hash_still_gives_right_answers(tmp_path):
    cache = tiny_cache(tmp_path / "kv", hash_function=lambda data: b"\0" * 16)
    one, two = [1] * 4 + [2] * 4 + [3] * 4, [9] * 4 + [2] * 4 + [5] * 4
    store(cache, one)
    assert cache.match(two).num_tokens == 0
    store(cache, two)
    assert load(cache, one).tokens == load(cache, two).tokens == {"ram": 12}
    cache.clear_ram()
    assert load(cache, one).tokens == load(cache, two).tokens == {"disk": 12}


def test_read_only_mode_uses_and_stores_nothing(tmp_path):
    store(tiny_cache(tmp_path / "kv"), TOKENS)
    before = {path: path.stat() for path in (tmp_path / "kv").rglob("*")}
    cache = tiny_cache(tmp_path / "kv", mode="ro")
    assert load(cache, TOKENS).tokens == {"disk": 48}
    store(cache, [5] * 20)
    assert cache.match([5] * 20).num_tokens == 0
    assert {path: path.stat().st_mtime_ns for path in before} == {p: s.st_mtime_ns for p, s in before.items()}
    assert not (tmp_path / "none").exists()
    tiny_cache(tmp_path / "none", mode="ro").match(TOKENS)
    assert not (tmp_path / "none").exists()


def test_off_finds_and_stores_nothing(tmp_path):
    cache = tiny_cache(tmp_path / "kv", mode="off")
    store(cache, TOKENS)
    assert cache.match(TOKENS).num_tokens == 0 and cache.match(TOKENS).ended is Ended.OFF
    assert not (tmp_path / "kv").exists()


def test_settings_come_from_the_configuration_with_budgets_for_this_machine(tmp_path):
    config = CacheConfig(ram=ByteSize(1000), codec="int8", block_size=8)
    chosen = CacheSettings.from_config(config, tmp_path)
    assert (chosen.ram_bytes, chosen.codec, chosen.block_size) == (1000, "int8", 8)
    assert 0 < chosen.disk_bytes <= 4 * 2**30
    assert CacheSettings.from_config(CacheConfig(), None).disk_bytes == 0
    assert CacheSettings.from_config(CacheConfig(), None).ram_bytes > 2**20


def test_no_budget_at_all_is_a_cache_that_holds_nothing():
    cache = tiny_cache(ram_bytes=0)
    store(cache, TOKENS)
    assert cache.match(TOKENS).num_tokens == 0


def test_matching_changes_nothing(tmp_path):
    cache = tiny_cache(tmp_path / "kv", ram_bytes=20 * TINY_BLOCK_BYTES)
    old, new = TOKENS[:32], [3] * 32
    store(cache, old)
    store(cache, new)
    cache.match(old)
    store(cache, [4] * 16)
    assert cache.contains(old)["ram"] < cache.contains(new)["ram"] == 32


def test_what_is_leased_is_not_evicted():
    cache = tiny_cache(ram_bytes=12 * TINY_BLOCK_BYTES)
    store(cache, TOKENS[:40])
    with cache.lease(cache.match(TOKENS)) as lease:
        store(cache, [3] * 40)
        cache.clear_ram()
        planes = empty_arena()
        assert cache.load(lease, planes, 0, 40).end == 40
        cache.check_integrity()
    store(cache, [3] * 40)
    assert cache.contains([3] * 40)["ram"] == 40


def test_a_lease_of_what_was_evicted_since_matches_anew(tmp_path):
    cache = tiny_cache(tmp_path / "kv")
    store(cache, TOKENS)
    match = cache.match(TOKENS)
    cache.clear_ram()
    with cache.lease(match) as lease:
        assert lease.tokens == {"disk": 48}


def test_the_reason_for_a_miss_is_a_fact(tmp_path):
    cache = tiny_cache()
    assert cache.match(TOKENS).ended is Ended.FIRST_USE
    store(cache, TOKENS[:20])
    assert cache.match(TOKENS).ended is Ended.NEW_TEXT
    assert cache.match(TOKENS[:22]).ended is Ended.COMPLETE
    cache.clear_ram()
    assert cache.match(TOKENS).ended is Ended.EVICTED
    assert cache.match([1] * 20).ended is Ended.NEW_TEXT


@pytest.mark.parametrize("is_damaged", [True, False])
def test_the_reason_is_known_in_the_middle_of_a_file_too(tmp_path, is_damaged):
    cache = tiny_cache(tmp_path / "kv", ram_bytes=6 * TINY_BLOCK_BYTES)
    other = tiny_cache(tmp_path / "kv", ram_bytes=0)
    store(other, TOKENS)
    store(cache, TOKENS)
    match = cache.match(TOKENS)
    assert match.tokens == {"ram": 20, "disk": 28}
    (path,) = stored_files(tmp_path / "kv")
    path.write_bytes(path.read_bytes()[:-1] + b"?") if is_damaged else path.unlink()
    load(cache, TOKENS)
    assert cache.match(TOKENS).ended is (Ended.CORRUPT if is_damaged else Ended.EVICTED)


def test_what_had_no_room_counts_as_evicted():
    cache = tiny_cache(ram_bytes=2 * TINY_BLOCK_BYTES)
    store(cache, TOKENS)
    assert cache.match(TOKENS).num_tokens == 8 and cache.match(TOKENS).ended is Ended.EVICTED


def test_a_corrupt_file_ends_the_load_before_it_and_says_so(tmp_path):
    warnings: list[str] = []
    cache = tiny_cache(tmp_path / "kv", warnings, ram_bytes=0)
    store(cache, TOKENS[:20])
    store(cache, TOKENS)
    damaged = max(stored_files(tmp_path / "kv"), key=lambda path: name_of(path).start)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert load(cache, TOKENS).end == 20
    assert len(warnings) == 1 and not damaged.exists()
    assert load(cache, TOKENS).end == 20 and cache.match(TOKENS).ended is Ended.CORRUPT
    store(cache, TOKENS)
    assert load(cache, TOKENS).end == 48 and len(warnings) == 1


def test_the_ram_budget_is_never_passed(tmp_path):
    budget = 10 * TINY_BLOCK_BYTES
    cache = tiny_cache(tmp_path / "kv", ram_bytes=budget)
    for number in range(60):
        tokens = [number % 7] * 8 + [number] * (number % 40)
        cache.commit(tokens, computed_arena(tokens), len(tokens), priority=number % 3)
        assert used_bytes(cache) <= budget
        cache.check_integrity()
    assert cache.drain(20)


def test_loading_is_estimated_from_what_was_measured(tmp_path):
    cache = tiny_cache(tmp_path / "kv")
    store(cache, TOKENS)
    guess = cache.match(TOKENS).load_s()
    load(cache, TOKENS)
    match = cache.match(TOKENS)
    assert match.load_s() != guess
    assert match.load_s(48) == 0 < match.load_s(24) < match.load_s()


def test_a_commit_that_fails_leaves_the_cache_as_it_was():
    cache = tiny_cache()
    store(cache, TOKENS[:8])
    with pytest.raises(AssertionError):
        cache.commit(TOKENS, computed_arena(TOKENS, capacity=50)[:1] + empty_arena(capacity=10)[1:], 48)
    cache.check_integrity()
    assert load(cache, TOKENS).end == 8


def test_others_may_look_while_one_commits(tmp_path):
    cache = tiny_cache(tmp_path / "kv", ram_bytes=30 * TINY_BLOCK_BYTES)
    failures: list[BaseException] = []
    stop = threading.Event()

    def look() -> None:
        try:
            while not stop.is_set():
                cache.match(TOKENS)
                cache.contains(TOKENS)
                cache.stats.turn.counts()
        except BaseException as error:
            failures.append(error)

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(20):
        store(cache, TOKENS[:20] + [number] * 20)
    stop.set()
    watcher.join(10)
    assert not failures and not watcher.is_alive()
    cache.check_integrity()


def test_closing_twice_and_committing_afterwards_do_no_harm(tmp_path):
    cache = tiny_cache(tmp_path / "kv")
    assert cache.close() and cache.close()
    cache.commit(TOKENS, computed_arena(TOKENS), 48)
    cache.check_integrity()
    assert load(cache, TOKENS).tokens == {"ram": 48}


def test_statistics_count_what_was_stored_and_evicted(tmp_path):
    cache = tiny_cache(tmp_path / "kv", ram_bytes=10 * TINY_BLOCK_BYTES)
    store(cache, TOKENS[:16])
    store(cache, [3] * 36)
    stats = cache.stats.process
    assert stats.stored_blocks == 4 + 9 and stats.stored_bytes == 13 * TINY_BLOCK_BYTES
    assert stats.evicted_blocks > 0 and stats.written_bytes > stats.stored_bytes
