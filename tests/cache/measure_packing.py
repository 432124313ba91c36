"""What packed KV takes and how quickly it is restored, against raw: python -m tests.cache.measure_packing; prints JSON.

Not a test: it times. The KV is that of a text in English through the embedded model. `--throttle MB` reads no faster than
so many megabytes a second, as a slow disk would; otherwise what is read was written just now, and lies in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch

from kvchat.backends.loading import load
from kvchat.bench.measure import english
from kvchat.cache.base import CacheSettings
from kvchat.cache.block import KVLayout
from kvchat.cache.codec import DTYPES
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.config import Config

NUM_COMPUTED = 1024
CODECS = ("raw", "packed")


def planes_of_a_text(dtype: str, num_tokens: int) -> list[torch.Tensor]:
    """KV of a text of 1,024 tokens, again and again."""
    loaded = load(Config(), lambda _: None, lambda _: None).model
    tokens = loaded.tokenizer.encode(english(NUM_COMPUTED + 8, loaded.tokenizer.count))[:NUM_COMPUTED]
    state = loaded.engine.loaded.new_state()
    for start in range(0, NUM_COMPUTED, 256):
        loaded.engine.loaded.forward(tokens[start : start + 256], state)
    times = -(-num_tokens // NUM_COMPUTED)
    computed = (plane[:, :NUM_COMPUTED].to(DTYPES[dtype]) for plane in state.planes)
    return [torch.cat([plane] * times, 1)[:, :num_tokens].contiguous() for plane in computed]


def throttle(bytes_per_s: float) -> None:
    """Let this process read files no faster."""
    read, lock = os.preadv, threading.Lock()

    def slowly(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        with lock:  # one disk
            began = time.perf_counter()
            num_bytes = read(descriptor, buffers, offset)
            time.sleep(max(0.0, num_bytes / bytes_per_s - (time.perf_counter() - began)))
        return num_bytes

    os.preadv = slowly


def restored_s(cache: PrefixCache, planes: list[torch.Tensor], num_tokens: int) -> float:
    """Seconds to restore all of it."""
    tokens = list(range(num_tokens))
    arena = [torch.zeros_like(plane) for plane in planes]
    with cache.lease(cache.match(tokens)) as lease:
        filled = cache.load(lease, arena, 0, num_tokens)
    assert filled.end == num_tokens // 16 * 16 and torch.equal(
        arena[0][:, : filled.end], planes[0][:, : filled.end]
    )
    return filled.seconds


def measured(dtype: str, num_tokens: int, repeats: int, root: Path) -> dict[str, object]:
    """The share of its size that packed KV takes, and milliseconds to restore either."""
    planes = planes_of_a_text(dtype, num_tokens)
    layout = KVLayout(tuple((plane.shape[0], plane.shape[2]) for plane in planes), dtype)
    caches, sizes = {}, {}
    for codec in CODECS:
        settings = CacheSettings(disk_bytes=2**32, disk_root=root / codec, codec=codec, wait_s=60.0)
        caches[codec] = PrefixCache(layout, b"measured", settings)
        caches[codec].commit(list(range(num_tokens)), planes, num_tokens)
        assert caches[codec].drain(60.0)
        sizes[codec] = sum(path.stat().st_size for path in (root / codec).rglob("*.kv"))
    times = {codec: [] for codec in CODECS}
    for _ in range(repeats):
        for codec in CODECS:
            times[codec].append(restored_s(caches[codec], planes, num_tokens) * 1e3)
    medians = {codec: statistics.median(spent) for codec, spent in times.items()}
    return {
        "dtype": dtype,
        "tokens": num_tokens,
        "share": sizes["packed"] / sizes["raw"],
        "ms": medians,
        "packed_times_raw": medians["packed"] / medians["raw"],
        "least_ms": {codec: min(spent) for codec, spent in times.items()},
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    flags = argparse.ArgumentParser()
    flags.add_argument("--tokens", type=int, default=4000)
    flags.add_argument("--repeats", type=int, default=9)
    flags.add_argument("--throttle", type=float)
    given = flags.parse_args()
    if given.throttle:
        throttle(given.throttle * 1e6)
    for dtype in ("bfloat16", "float32"):
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measured(dtype, given.tokens, given.repeats, Path(folder))))
