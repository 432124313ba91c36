"""Runs of a chain are found again as if nothing was remembered of the match before."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvchat.cache.base import Piece
from kvchat.cache.block import Chain, Chains
from kvchat.cache.ram import RamRun
from kvchat.cache.tree import Tree
from tests.cache.arena import TINY_BLOCK_BYTES, computed_arena, tiny_cache

CHAINS = Chains(b"", 1)
CONSTANT = Chains(b"", 1, lambda data: b"\0" * 16)
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12)
STEPS = st.lists(st.tuples(st.sampled_from(["add", "add", "remove", "match"]), TOKENS, st.integers(0, 99)))


class Data:
    """Memory of which only the size is asked."""

    nbytes = 0


def run_behind(tree: Tree[RamRun], chain: Chain, pick: int) -> RamRun:
    """A run that ends where the chain does, and begins somewhere in what is held of it, or behind that."""
    pieces = tree.match(chain)
    start = min(pick % (1 + (pieces[-1].end if pieces else 0)), len(chain) - 1)
    above = next((piece.run for piece in pieces if piece.start < start <= piece.end), None)
    return RamRun.of(above, chain, start, Data(), 0)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS, chains=st.sampled_from([CHAINS, CONSTANT]))
def test_what_is_found_does_not_depend_on_what_was_looked_for_before(
    steps: list[tuple[str, list[int], int]], chains: Chains
) -> None:
    tree: Tree[RamRun] = Tree()
    known: list[Piece] = []
    for what, tokens, pick in steps:
        chain = Chains(chains.root, 1, chains.hash_function).blocks(tokens)
        known += tree.match(chain)
        if what == "add":
            tree.add(run_behind(tree, chain, pick))
        elif what == "remove" and (runs := list(tree)):
            tree.remove(runs[pick % len(runs)])
        fresh: Tree[RamRun] = Tree()
        for run in tree:
            fresh.add(run)
        found = tree.match(chain)
        assert [piece[1:] for piece in found] == [piece[1:] for piece in fresh.match(chain)]
        assert all(piece in known for piece in found[: tree.num_kept])
        known += found


@settings(deadline=None)
@given(
    first=st.lists(st.integers(0, 3), max_size=40),
    second=st.lists(st.integers(0, 3), max_size=40),
    shared=st.integers(0, 40),
)
def test_a_chain_has_the_same_hashes_whatever_was_hashed_before(
    first: list[int], second: list[int], shared: int
) -> None:
    chains = Chains(b"r" * 16, 3)
    for tokens in (first, first[:shared] + second, first[:shared], first):
        assert chains.blocks(tokens) == Chains(b"r" * 16, 3).blocks(tokens)


def test_a_priority_that_was_raised_is_seen() -> None:
    tokens = list(range(8))
    cache = tiny_cache(None, ram_bytes=20 * TINY_BLOCK_BYTES)
    cache.commit(tokens, computed_arena(tokens), len(tokens))
    assert cache.contains(tokens, priority=2) == {"ram": 0}
    cache.commit(tokens, computed_arena(tokens), len(tokens), priority=2)
    assert cache.contains(tokens, priority=2) == cache.contains(tokens)
