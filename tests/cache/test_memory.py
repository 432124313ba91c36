"""The RAM budget in the system's own eyes."""

import random
import sys
from pathlib import Path

import pytest
import torch

from kvchat.cache.base import CacheSettings
from kvchat.cache.block import KVLayout
from kvchat.cache.prefix_cache import PrefixCache
from tests.cache.arena import used_bytes

LAYOUT = KVLayout(((3, 64),) * 12, "bfloat16")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("turns", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_resident_memory_stays_within_the_budget_over_many_turns_of_mixed_sessions(tmp_path, turns):
    budget = 48 * 2**20
    planes = [torch.ones(heads, 2000, dim, dtype=torch.bfloat16) for heads, dim in LAYOUT.planes]
    settings = CacheSettings(ram_bytes=budget, disk_root=tmp_path / "kv", disk_bytes=2**28)
    cache = PrefixCache(LAYOUT, b"a model", settings)
    chance = random.Random(1)
    sessions = {number: [number] * 200 for number in range(12)}
    before, most = resident_bytes(), 0
    for _ in range(turns):
        tokens = sessions[chance.randrange(12)]
        tokens.extend(chance.randrange(1000) for _ in range(chance.randrange(20, 300)))
        del tokens[2000:]
        cache.commit(tokens, planes, len(tokens))
        assert used_bytes(cache) <= budget
        most = max(most, resident_bytes() - before)
    assert cache.drain(60)
    cache.check_integrity()
    assert used_bytes(cache) > budget * 0.8
    assert most <= budget * 1.05 + 16 * 2**20  # what Python itself takes meanwhile
    cache.close()
