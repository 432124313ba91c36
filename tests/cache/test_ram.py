import gc
import weakref

import numpy as np
import pytest

from kvchat.cache.base import default_ram_bytes
from kvchat.cache.block import Chain, Chains
from kvchat.cache.ram import RamRun, RamTier
from kvchat.cache.stats import StatsCounter

BLOCK_BYTES = 10


def chain(tokens: str) -> Chain:
    """One block a letter."""
    return Chains(b"", 1).blocks([ord(letter) for letter in tokens])


def add(ram: RamTier, tokens: str, *, priority: int = 0) -> RamRun | None:
    """Store what is not yet there as one run; None when there is no room."""
    wanted = chain(tokens)
    above = ram.match(wanted)
    start = above[-1].end if above else 0
    num_bytes = (len(wanted) - start) * BLOCK_BYTES
    if not ram.reserve(num_bytes, above):
        return None
    assert ram.store(wanted, start, np.zeros(num_bytes, dtype=np.uint8), priority=priority)
    ram.check_integrity()
    return ram.match(wanted)[-1].run


def held(ram: RamTier, tokens: str) -> str:
    pieces = ram.match(chain(tokens))
    return tokens[: pieces[-1].end] if pieces else ""


def test_a_prefix_is_found_and_nothing_past_it():
    ram = RamTier(100)
    add(ram, "abc")
    found = [held(ram, text) for text in ("abcd", "abc", "ab", "abx", "x", "bc")]
    assert found == ["abc", "abc", "ab", "ab", "", ""]


def test_a_fork_in_the_middle_of_a_run_stores_only_what_is_new():
    ram = RamTier(100)
    add(ram, "abcd")
    add(ram, "abxy")
    assert ram.used_bytes == 6 * BLOCK_BYTES
    assert held(ram, "abxyz") == "abxy" and held(ram, "abcd") == "abcd"
    assert [(piece.start, piece.end) for piece in ram.match(chain("abxy"))] == [(0, 2), (2, 4)]


def test_the_same_blocks_behind_another_parent_are_not_these():
    ram = RamTier(100)
    same = Chains(b"", 1, lambda data: b"\0" * 16)
    for tokens in ([1, 2], [9, 2]):
        wanted = same.blocks(tokens)
        assert ram.match(wanted) == ()
        for end in (1, 2):
            assert ram.store(wanted.prefix(end), end - 1, np.zeros(BLOCK_BYTES, dtype=np.uint8))
    assert [len(ram.match(same.blocks(tokens))) for tokens in ([1, 2], [9, 2], [2], [1, 9])] == [2, 2, 0, 1]


def test_the_least_recently_used_goes_first():
    ram = RamTier(40)
    for text in ("aa", "bb"):
        add(ram, text)
    ram.use(chain("aa"))
    add(ram, "cc")
    assert [held(ram, text) for text in ("aa", "bb", "cc")] == ["aa", "", "cc"]


def test_children_go_before_their_parents_even_when_they_are_newer():
    ram = RamTier(50)
    add(ram, "a")
    add(ram, "abb")
    add(ram, "cc")
    add(ram, "dd")
    assert [held(ram, text) for text in ("abb", "cc", "dd")] == ["a", "cc", "dd"]


def test_lower_priority_goes_first_and_a_child_lifts_its_parents():
    ram = RamTier(40)
    add(ram, "a")
    add(ram, "ab", priority=1)
    add(ram, "cc")
    add(ram, "dd")
    assert [held(ram, text) for text in ("ab", "cc", "dd")] == ["ab", "", "dd"]


def test_what_is_pinned_stays_with_its_ancestors():
    ram = RamTier(40)
    add(ram, "a")
    add(ram, "ab")
    pieces = ram.match(chain("ab"))
    assert ram.pin(pieces)
    assert add(ram, "ccc") is None and held(ram, "ab") == "ab"
    add(ram, "cc")
    assert add(ram, "dd") and held(ram, "cc") == ""
    ram.unpin(pieces)
    assert add(ram, "eeee") and held(ram, "ab") == ""
    assert not ram.pin(pieces)


def test_nothing_is_evicted_for_what_can_never_fit():
    ram = RamTier(40)
    add(ram, "aa")
    assert add(ram, "bbbbb") is None
    assert held(ram, "aa") == "aa"


def test_each_eviction_is_told():
    stats = StatsCounter()
    ram = RamTier(40, stats=stats)
    gone = []
    for text in ("a", "bbb", "cccc"):
        add(ram, text)
        gone.append(stats.process.evicted_blocks)
    assert gone == [0, 0, 4]


def test_another_policy_says_what_goes():
    class Newest:
        """The leaf that was added last goes first."""

        def __init__(self) -> None:
            self.runs: list[RamRun] = []
            self.num_used = 0

        def added(self, run: RamRun) -> None:
            self.runs.append(run)

        def used(self, run: RamRun) -> None:
            self.num_used += 1

        def removed(self, run: RamRun) -> None:
            self.runs.remove(run)

        def victim(self, can_go):
            return next((run for run in reversed(self.runs) if can_go(run)), None)

    policy = Newest()
    ram = RamTier(50, policy=policy)
    for text in ("aa", "bb", "bbc", "dd"):
        add(ram, text)
    assert [held(ram, text) for text in ("aa", "bbc", "dd")] == ["aa", "", "dd"]
    assert policy.num_used == 1, "the parent of what was added"


def test_an_evicted_run_gives_its_memory_back_at_once():
    ram = RamTier(40)
    stale = add(ram, "aa")
    data = weakref.ref(stale.data)
    gc.disable()
    try:
        add(ram, "bbbb")
        assert data() is None
    finally:
        gc.enable()


def test_clear_leaves_what_is_pinned():
    ram = RamTier(100)
    add(ram, "ab")
    assert ram.pin(ram.match(chain("ab")))
    add(ram, "abc")
    add(ram, "x")
    ram.clear()
    assert (held(ram, "abc"), held(ram, "x"), ram.used_bytes) == ("ab", "", 2 * BLOCK_BYTES)


def test_the_integrity_check_sees_an_orphan():
    ram = RamTier(100)
    add(ram, "a")
    above = add(ram, "ab").parent
    ram._runs.remove(above)
    ram._tree.remove(above)
    ram._used_bytes -= BLOCK_BYTES
    with pytest.raises(AssertionError, match="orphan"):
        ram.check_integrity()


def test_the_default_budget_is_a_part_of_the_memory():
    assert 0 < default_ram_bytes() < 2**50
