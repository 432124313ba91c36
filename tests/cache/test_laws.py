"""The cache under any sequence of commits, loads, evictions, pins, restarts and damage."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvchat.cache.block import xxh3_128
from kvchat.cache.folder import scan_folder
from tests.cache.arena import (
    TINY_BLOCK_BYTES,
    computed_arena,
    empty_arena,
    is_equal,
    is_untouched,
    tiny_cache,
    used_bytes,
)

TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=24)
ROOMY = 2**22


class Cache(RuleBasedStateMachine):
    """The model is `computed_arena`: whatever is loaded has to be that."""

    @initialize(
        ram_blocks=st.sampled_from([0, 2, 9, 500]),
        disk_bytes=st.sampled_from([0, 3000, ROOMY]),
        is_constant=st.booleans(),
        block_size=st.sampled_from([1, 2, 4]),
        codec=st.sampled_from(["raw", "packed"]),
    )
    def open(self, ram_blocks, disk_bytes, is_constant, block_size, codec):
        self.stack = ExitStack()
        self.root = Path(self.stack.enter_context(tempfile.TemporaryDirectory())) / "kv"
        self.changed = {
            "ram_bytes": ram_blocks * TINY_BLOCK_BYTES,
            "disk_bytes": disk_bytes,
            "hash_function": (lambda data: b"\0" * 16) if is_constant else xxh3_128,
            "block_size": block_size,
            "codec": codec,
        }
        self.cache = tiny_cache(self.root, **self.changed)
        self.is_complete = ram_blocks == 500 or (disk_bytes == ROOMY and not is_constant)
        self.committed: list[list[int]] = []
        self.leases = ExitStack()

    @rule(tokens=TOKENS, priority=st.integers(0, 2))
    def commit(self, tokens, priority):
        self.cache.commit(tokens, computed_arena(tokens), len(tokens), priority=priority)
        assert self.cache.drain(20)
        self.committed.append(tokens)

    @rule(tokens=TOKENS, start=st.integers(0, 24))
    def load(self, tokens, start):
        planes = empty_arena()
        with self.cache.lease(self.cache.match(tokens)) as lease:
            loaded = self.cache.load(lease, planes, start, len(tokens))
        assert is_equal(planes, computed_arena(tokens), start, loaded.end)
        assert is_untouched(planes, 0, start) and is_untouched(planes, loaded.end)

    @rule(tokens=TOKENS)
    def pin(self, tokens):
        self.leases.enter_context(self.cache.lease(self.cache.match(tokens)))

    @rule()
    def unpin(self):
        self.leases.close()

    @rule()
    def evict_ram(self):
        self.cache.clear_ram()
        self.is_complete = self.is_complete and self.changed["disk_bytes"] == ROOMY

    @rule()
    def restart(self):
        self.leases.close()
        assert self.cache.close()
        self.cache = tiny_cache(self.root, **self.changed)
        self.is_complete = self.is_complete and self.changed["disk_bytes"] == ROOMY

    @rule(pick=st.integers(0, 99), where=st.floats(0, 0.999), is_cut=st.booleans())
    def damage(self, pick, where, is_cut):
        files = scan_folder(self.root).files
        if not files:
            return
        path = files[pick % len(files)].path
        content = bytearray(path.read_bytes())
        at = int(where * len(content))
        if content:
            content[at] ^= 0x20
        path.write_bytes(content[:at] if is_cut else content)
        self.is_complete = False

    @invariant()
    def holds(self):
        self.cache.check_integrity()
        assert used_bytes(self.cache) <= self.changed["ram_bytes"]
        assert scan_folder(self.root).num_bytes <= self.changed["disk_bytes"]

    @invariant()
    def nothing_is_lost_without_a_reason(self):
        for tokens in self.committed[-2:] if self.is_complete else ():
            size = self.cache.settings.block_size
            whole = len(tokens) // size * size
            assert self.cache.match(tokens).num_tokens == whole

    def teardown(self):
        self.leases.close()
        self.cache.close()
        self.stack.close()


few = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
many = settings(few, max_examples=600, stateful_step_count=50)
Cache.TestCase.settings = few
test_the_laws_hold_after_every_step = Cache.TestCase


@pytest.mark.slow
class TestTheLawsHoldForLong(Cache.TestCase):
    settings = many
