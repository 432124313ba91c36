import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from kvchat.cache.block import Chains, KVLayout, xxh3_128

ROOT = b"r" * 16


def test_a_block_hash_is_the_digest_of_its_parent_and_its_tokens():
    ids = list(range(7))
    first = xxh3_128(ROOT + b"".join(i.to_bytes(4, "little") for i in ids[:3]))
    second = xxh3_128(first + b"".join(i.to_bytes(4, "little") for i in ids[3:6]))
    assert Chains(ROOT, 3).blocks(ids).hashes == (first, second)


def test_only_full_blocks_are_hashed():
    assert [len(Chains(ROOT, 4).blocks(range(n))) for n in (0, 3, 4, 5, 8)] == [0, 0, 1, 1, 2]


def test_a_changed_token_changes_its_block_and_all_after_it():
    before = Chains(ROOT, 4).blocks(list(range(16))).hashes
    after = Chains(ROOT, 4).blocks([*range(5), 99, *range(6, 16)]).hashes
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False, False]


@given(
    changes=st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(0, 3), max_size=20)), max_size=8),
    as_tuple=st.booleans(),
)
def test_chains_are_the_same_whatever_was_asked_for_before(changes, as_tuple):
    used, tokens = Chains(ROOT, 4), []
    for kept, added in changes:
        tokens[kept:] = added
        asked = tuple(tokens) if as_tuple else tokens
        assert used.blocks(asked) == Chains(ROOT, 4).blocks(tokens)
        assert used.state(asked) == Chains(ROOT, 4).state(tokens)


def test_hashes_are_the_same_in_another_process():
    code = "from kvchat.cache.block import Chains; print([d.hex() for d in Chains(b'r' * 16, 2).blocks([1, 2, 3, 4]).hashes])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str([digest.hex() for digest in Chains(ROOT, 2).blocks([1, 2, 3, 4]).hashes])


def test_common_blocks_are_counted_up_to_the_first_difference():
    chain = Chains(ROOT, 4).blocks(list(range(12)))
    for position, expected in ((0, 0), (3, 0), (4, 1), (11, 2), (12, 3)):
        ids = [*range(position), 99, *range(position + 1, 16)]
        assert chain.num_equal(0, Chains(ROOT, 4).blocks(ids).tokens) == expected


def test_a_layout_survives_json():
    layout = KVLayout(((1, 576), (1, 64), (3, 64), (3, 64)), "bfloat16")
    assert KVLayout.from_json(layout.to_json()) == layout
    assert layout.bytes_per_token == (576 + 64 + 2 * 192) * 2
