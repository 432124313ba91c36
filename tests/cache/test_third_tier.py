"""A third tier is one class and one line of the settings."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from kvchat.cache.base import Piece, Stored, Tier
from kvchat.cache.block import Chain
from tests.cache.arena import TINY_BLOCK_BYTES, load, store, tiny_cache

TOKENS = list(range(100, 150))


class PlainFolder(Tier):
    """A file a block, called by the block's hash: its token ids, and then its KV."""

    name = "attic"

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def used_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.root.iterdir())

    @property
    def budget_bytes(self) -> int:
        return 2**40

    def match(self, chain: Chain) -> Sequence[Piece]:
        pieces: list[Piece] = []
        for number, digest in enumerate(chain.hashes):
            path = self.root / digest.hex()
            ids = chain.ids(number, number + 1)
            if not path.exists() or path.read_bytes()[: len(ids)] != ids:
                break
            pieces.append(Piece((path, len(ids)), number, number + 1))
        return pieces

    def read(self, pieces: Sequence[Piece], start: int, end: int) -> Iterator[Stored]:
        for (path, offset), first, last, _ in pieces[start:end]:
            yield Stored(first, last, np.fromfile(path, dtype=np.uint8, offset=offset))

    def store(self, chain: Chain, start: int, data: np.ndarray, *, priority: int = 0) -> bool:
        if len(self.match(chain.prefix(start))) < start:
            return False
        for number, block in enumerate(data.reshape(len(chain) - start, -1), start):
            path = self.root / chain.hashes[number].hex()
            path.write_bytes(chain.ids(number, number + 1) + block.tobytes())
        return True

    def use(self, chain: Chain, priority: int = 0) -> None:
        for piece in self.match(chain):
            piece.run[0].touch()


@pytest.fixture
def attic(tmp_path):
    folder = tmp_path / "attic"
    folder.mkdir()
    return PlainFolder(folder)


def test_a_third_tier_serves_what_the_others_have_not(tmp_path, attic):
    cache = tiny_cache(tmp_path / "kv", ram_bytes=6 * TINY_BLOCK_BYTES, further=(attic,))
    store(cache, TOKENS)
    assert load(cache, TOKENS).tokens == {"ram": 20, "disk": 28}
    assert cache.contains(TOKENS) == {"ram": 20, "disk": 48, "attic": 48}
    for path in (tmp_path / "kv").glob("*/*.kv"):
        path.unlink()
    assert load(cache, TOKENS).tokens == {"ram": 20, "attic": 28}
    assert cache.match(TOKENS).tokens == {"ram": 20, "attic": 28}


def test_a_third_tier_outlives_the_process_and_counts_by_its_name(attic):
    first = tiny_cache(further=(attic,))
    store(first, TOKENS)
    assert first.close()
    cache = tiny_cache(further=(attic,))
    assert load(cache, TOKENS, 3, 41).tokens == {"attic": 38}
    assert [use.tier for use in cache.usage()] == ["ram", "attic"]
    assert cache.usage()[1].used_bytes > 12 * TINY_BLOCK_BYTES
