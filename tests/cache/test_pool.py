import gc
import weakref

import pytest
import torch

from kvchat.cache.block import Chain, hash_chain
from kvchat.cache.pool import Block, Pool, default_ram_bytes, spans

BLOCK_BYTES = 10


def chain(tokens: str) -> Chain:
    """One block a letter."""
    return hash_chain([ord(letter) for letter in tokens], 1, b"")


def add(pool: Pool, tokens: str, *, priority: int = 0) -> Block | None:
    """Store what is not yet there as one run; None when there is no room."""
    parent = pool.match(chain(tokens))
    num_bytes = (len(tokens) - (parent.depth if parent else 0)) * BLOCK_BYTES
    if parent:
        pool.pin(parent)
    is_room = pool.reserve(num_bytes)
    if parent:
        pool.unpin(parent)
    if not is_room:
        return None
    run = pool.insert(parent, chain(tokens), torch.zeros(num_bytes, dtype=torch.uint8), priority)
    pool.check_integrity()
    return run.blocks[-1]


def held(pool: Pool, tokens: str) -> str:
    tail = pool.match(chain(tokens))
    return tokens[: tail.depth] if tail else ""


def test_a_prefix_is_found_and_nothing_past_it():
    pool = Pool(100)
    add(pool, "abc")
    assert [held(pool, text) for text in ("abcd", "abc", "ab", "abx", "x", "bc")] == [
        "abc",
        "abc",
        "ab",
        "ab",
        "",
        "",
    ]


def test_a_fork_in_the_middle_of_a_run_stores_only_what_is_new():
    pool = Pool(100)
    add(pool, "abcd")
    add(pool, "abxy")
    assert pool.used_bytes == 6 * BLOCK_BYTES
    assert held(pool, "abxyz") == "abxy" and held(pool, "abcd") == "abcd"
    assert [(run.start, count) for run, count in spans(pool.match(chain("abxy")))] == [(0, 2), (2, 2)]


def test_the_least_recently_used_goes_first():
    pool = Pool(40)
    for text in ("aa", "bb"):
        add(pool, text)
    pool.touch(pool.match(chain("aa")))
    add(pool, "cc")
    assert [held(pool, text) for text in ("aa", "bb", "cc")] == ["aa", "", "cc"]


def test_children_go_before_their_parents_even_when_they_are_newer():
    pool = Pool(50)
    add(pool, "a")
    add(pool, "abb")
    add(pool, "cc")
    add(pool, "dd")
    assert [held(pool, text) for text in ("abb", "cc", "dd")] == ["a", "cc", "dd"]


def test_lower_priority_goes_first_and_a_child_lifts_its_parents():
    pool = Pool(40)
    add(pool, "a")
    add(pool, "ab", priority=1)
    add(pool, "cc")
    add(pool, "dd")
    assert [held(pool, text) for text in ("ab", "cc", "dd")] == ["ab", "", "dd"]


def test_what_is_pinned_stays_with_its_ancestors():
    pool = Pool(40)
    add(pool, "a")
    tail = add(pool, "ab")
    pool.pin(tail)
    assert add(pool, "ccc") is None and held(pool, "ab") == "ab"
    add(pool, "cc")
    assert add(pool, "dd") and held(pool, "cc") == ""
    pool.unpin(tail)
    assert add(pool, "eeee") and held(pool, "ab") == ""


def test_nothing_is_evicted_for_what_can_never_fit():
    pool = Pool(40)
    add(pool, "aa")
    assert add(pool, "bbbbb") is None
    assert held(pool, "aa") == "aa"


def test_each_eviction_is_told():
    gone: list[int] = []
    pool = Pool(40, lambda run: gone.append(len(run.blocks)))
    for text in ("a", "bbb", "cccc"):
        add(pool, text)
    assert gone == [1, 3]


def test_an_evicted_run_gives_its_memory_back_at_once():
    pool = Pool(40)
    stale = add(pool, "aa")
    buffer = weakref.ref(stale.run.buffer)
    gc.disable()
    try:
        add(pool, "bbbb")
        assert buffer() is None and stale.run not in pool
    finally:
        gc.enable()


def test_clear_leaves_what_is_pinned():
    pool = Pool(100)
    pool.pin(add(pool, "ab"))
    add(pool, "abc")
    add(pool, "x")
    pool.clear()
    assert (held(pool, "abc"), held(pool, "x"), pool.num_blocks) == ("ab", "", 2)


def test_the_integrity_check_sees_an_orphan():
    pool = Pool(100)
    add(pool, "a")
    add(pool, "ab")
    pool._runs.pop(next(iter(pool._runs)))
    with pytest.raises(AssertionError):
        pool.check_integrity()


def test_the_default_budget_is_a_part_of_the_memory():
    assert 0 < default_ram_bytes() < 2**50
