"""What 10^6 blocks cost the cache: python -m tests.cache.measure_scale ram|disk [FILES]; prints JSON. Not a test: it times.

Times are the process's own, user's and system's: a busy machine does not change them. The blocks are tiny, so that what is measured is the index: as many conversations of 32k tokens as make 10^6 blocks, each
stored in runs of equal length.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvchat.cache.base import CacheSettings
from kvchat.cache.block import Chain, Chains, KVLayout, chain_root
from kvchat.cache.disk import DiskTier
from kvchat.cache.entry import NO_PARENT, EntryName, FolderMeta
from kvchat.cache.folder import META_NAME
from kvchat.cache.header import pack_header
from kvchat.cache.ram import RamTier
from kvchat.cache.stats import StatsCounter

NUM_BLOCKS = 10**6
BLOCKS_OF_ONE = 2048
BLOCK_SIZE = 16
LAYOUT = KVLayout(((1, 1),), "float32")
BLOCK_BYTES = LAYOUT.bytes_per_token * BLOCK_SIZE
ROOT = chain_root(LAYOUT, b"scale", BLOCK_SIZE, "raw")
CHAINS = Chains(ROOT, BLOCK_SIZE)
META = FolderMeta(LAYOUT, "raw", BLOCK_SIZE, BLOCK_BYTES, described={"model": "scale"})


def conversation(number: int) -> list[int]:
    """The tokens of one of them."""
    return random.Random(number).choices(range(50_000), k=BLOCKS_OF_ONE * BLOCK_SIZE)


def runs_of(chain: Chain, num_blocks: int) -> list[tuple[int, Chain]]:
    """Where each run of a chain begins, and the chain up to its end."""
    ends = range(num_blocks, len(chain) + 1, num_blocks)
    return [(end - num_blocks, chain.prefix(end)) for end in ends]


def fill_folder(folder: Path, num_blocks: int) -> None:
    """Write the files as the disk tier would, but for the waiting for the disk."""
    folder.mkdir(mode=0o700, parents=True)
    (folder / META_NAME).write_text(json.dumps(META.to_json()))
    (folder / META_NAME).chmod(0o600)
    blocks = [memoryview(bytes(BLOCK_BYTES))] * num_blocks
    for number in range(NUM_BLOCKS // BLOCKS_OF_ONE):
        parent = NO_PARENT
        for start, chain in runs_of(CHAINS.blocks(conversation(number)), num_blocks):
            name = EntryName.of(chain, start, parent, 0)
            path = folder / str(name)
            path.touch(mode=0o600)
            path.write_bytes(
                pack_header(folder.name, name, chain, META, blocks) + bytes(BLOCK_BYTES * num_blocks)
            )
            parent = name.key


def resident_bytes() -> int:
    """What this process has in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def median_s(work: Callable[[int], object], times: int = 21) -> float:
    """Seconds that it takes, of several times; it is told which time it is."""
    spent: list[float] = []
    for number in range(times):
        began = time.process_time()
        work(number)
        spent.append(time.process_time() - began)
    return sorted(spent)[times // 2]


def measured_disk(root: Path, num_blocks: int) -> dict[str, float]:
    """Opening, looking up, evicting and listing, with everything in files."""
    fill_folder(root / ROOT.hex(), num_blocks)
    before, began = resident_bytes(), time.process_time()
    settings = CacheSettings(disk_root=root, disk_bytes=2**40)
    disk = DiskTier(settings, ROOT, META, stats=StatsCounter(), warn=print)
    disk.sweep()
    opened_s = time.process_time() - began
    asked = [conversation(number) for number in range(21)]
    assert disk.match(CHAINS.blocks(asked[0]))[-1].end == BLOCKS_OF_ONE // num_blocks * num_blocks
    first_s = median_s(lambda number: disk.match(CHAINS.blocks(asked[number])))
    again_s = median_s(lambda number: disk.match(CHAINS.blocks(asked[number])))
    index_bytes = resident_bytes() - before
    began, wanted = time.process_time(), 500
    with disk._turn(10.0):
        excess = sum(path.stat().st_size for path in list((root / ROOT.hex()).glob("*.kv"))[:wanted])
        began = time.process_time()
        evicted = disk._shelf.evict(excess, ())
    evict_s = time.process_time() - began
    assert evicted
    return {
        "open_s": opened_s,
        "first_lookup_ms": first_s * 1e3,
        "lookup_ms": again_s * 1e3,
        "index_mb": index_bytes / 1e6,
        "evict_us_a_block": evict_s / evicted / num_blocks * 1e6,
        "evict_us_a_file": evict_s / evicted * 1e6,
        "ls_s": listed_s(root),
    }


def listed_s(root: Path) -> float:
    """Seconds of `kvchat cache ls` as a program of its own, its start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "kvchat", "cache", "ls", "--cache-dir", str(root)]
    listed = subprocess.run(command, capture_output=True, check=True).stdout
    assert listed.count(b"\n") > 1000
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured_ram(num_blocks: int) -> dict[str, float]:
    """Looking up and evicting, with everything in RAM; the blocks' own bytes left out."""
    before = resident_bytes()
    ram = RamTier(NUM_BLOCKS * BLOCK_BYTES)
    data = np.zeros(num_blocks * BLOCK_BYTES, dtype=np.uint8)
    for number in range(NUM_BLOCKS // BLOCKS_OF_ONE):
        for start, chain in runs_of(CHAINS.blocks(conversation(number)), num_blocks):
            ram.store(chain, start, data)
    index_bytes = resident_bytes() - before
    asked = [conversation(number) for number in range(21)]
    lookup_s = median_s(lambda number: ram.match(CHAINS.blocks(asked[number])))
    began, num_evicted = time.process_time(), 2000
    for _ in range(num_evicted):
        assert ram.evict()
    evict_s = time.process_time() - began
    return {
        "lookup_ms": lookup_s * 1e3,
        "index_mb": index_bytes / 1e6,
        "evict_us_a_block": evict_s / num_evicted / num_blocks * 1e6,
    }


if __name__ == "__main__":
    num_files = int(sys.argv[2]) if len(sys.argv) > 2 else 62_500
    num_blocks = NUM_BLOCKS // num_files
    with tempfile.TemporaryDirectory() as folder:
        is_ram = sys.argv[1] == "ram"
        found = measured_ram(num_blocks) if is_ram else measured_disk(Path(folder) / "kv", num_blocks)
    print(json.dumps({"tier": sys.argv[1], "blocks_a_run": num_blocks, **found}))
