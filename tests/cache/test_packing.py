"""Packed KV comes back to the bit, and nothing that was written by somebody else does harm."""

import json
import random
import struct

import numpy as np
import pytest
import torch

from kvchat.cache.block import ELEMENT_BYTES, KVLayout, StateShape
from kvchat.cache.codec import DTYPES
from kvchat.cache.encoding import Encoding
from kvchat.cache.entry import EntryError, FolderMeta
from kvchat.cache.packing import Packing, block_packing, snapshot_packing
from kvchat.cache.transfer import packing_pays
from tests.cache.arena import BLOCK_SIZE, TINY, computed_arena, load, store, stored_files, tiny_cache

TOKENS = list(range(100, 148))
REAL = KVLayout(((3, 64),) * 8, "bfloat16")


def packing_of(layout: KVLayout, block_size: int = 16) -> Packing:
    return block_packing(layout, layout.bytes_per_token * block_size)


def round_trip(packing: Packing, block: bytes) -> tuple[bytes, int]:
    """A block after it was packed, and how many bytes that took."""
    packed = packing.pack(memoryview(block))
    back = bytearray(len(block))
    packing.unpack([memoryview(packed)], memoryview(back))
    assert len(packed) <= packing.most_bytes
    return bytes(back), len(packed)


def normal(layout: KVLayout, num_tokens: int = 16, scale: float = 1.0) -> bytes:
    """Bytes of KV that is drawn at random, each layer of another size."""
    torch.manual_seed(0)
    planes = [
        torch.randn(heads * num_tokens * dim) * scale * 2.0 ** (number % 2)
        for number, (heads, dim) in enumerate(layout.planes)
    ]
    return torch.cat(planes).to(DTYPES[layout.dtype]).view(torch.uint8).numpy().tobytes()


def random_bytes(chance: random.Random, num_bytes: int) -> bytes:
    """Noise, or numbers alike, or nearly all the same: with every bit pattern among them, NaN and infinities too."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(num_bytes)
    if kind == 1:
        return bytes(num_bytes)
    if kind == 2:
        return (chance.randbytes(8) * num_bytes)[:num_bytes]
    values = np.random.default_rng(chance.randrange(2**32)).normal(
        0, 10.0 ** chance.randrange(-30, 30), num_bytes
    )
    return values.astype(np.float32).tobytes()[:num_bytes]


@pytest.mark.parametrize("times", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_bit_of_random_runs_comes_back(times):
    chance = random.Random(times)
    for _ in range(times):
        planes = tuple(
            (chance.randint(1, 3), chance.choice((1, 3, 8, 64))) for _ in range(chance.randint(1, 4))
        )
        layout = KVLayout(planes, chance.choice(list(ELEMENT_BYTES)))
        packing = packing_of(layout, chance.choice((1, 3, 16)))
        blocks = [random_bytes(chance, packing.num_bytes) for _ in range(chance.randint(1, 3))]
        packed = [memoryview(packing.pack(memoryview(block))) for block in blocks]
        back = bytearray(len(blocks) * packing.num_bytes)
        packing.unpack(packed, memoryview(back))
        assert back == b"".join(blocks), (layout, chance)


def test_all_numbers_of_16_bits_come_back():
    every = np.arange(2**16, dtype="<u2").tobytes()
    packing = packing_of(KVLayout(((1, 2**12),), "bfloat16"))
    assert round_trip(packing, every)[0] == every


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.7), ("float32", 0.85), ("float16", 0.88)])
def test_kv_takes_less_room_by_what_its_exponents_have_in_common(dtype, share):
    layout = KVLayout(REAL.planes, dtype)
    block = normal(layout)
    back, num_bytes = round_trip(packing_of(layout), block)
    assert back == block and num_bytes <= share * len(block)


def test_noise_takes_no_more_room_than_a_few_bytes():
    packing = packing_of(REAL)
    noise = random.Random(1).randbytes(packing.num_bytes)
    assert round_trip(packing, noise)[1] <= packing.num_bytes + 16


def test_a_snapshot_of_states_and_kv_of_other_dtypes_comes_back():
    states = (StateShape((2, 3, 5), "float32"), StateShape((7,), "bfloat16"), StateShape((4, 4), "float32"))
    for planes in (((2, 4),), ()):
        layout = KVLayout(planes, "bfloat16", states)
        size = Encoding(layout, "raw", 16).state_bytes
        packing = snapshot_packing(layout, size)
        snapshot = random.Random(2).randbytes(size // 2) + bytes(size - size // 2)
        assert packing.num_bytes == size and round_trip(packing, snapshot)[0] == snapshot


def test_flipped_and_cut_bytes_are_refused_or_give_as_many_others():
    chance = random.Random(3)
    layout = KVLayout(((1, 16),), "float32")
    packing = packing_of(layout)
    whole = packing.pack(memoryview(normal(layout)))
    num_refused = 0
    for _ in range(1000):
        hostile = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            hostile[chance.randrange(len(hostile))] = chance.randrange(256)
        into = bytearray(packing.num_bytes + 8)
        try:
            packing.unpack(
                [memoryview(hostile[: chance.choice((None, chance.randrange(len(hostile))))])],
                memoryview(into),
            )
        except EntryError:
            num_refused += 1
        assert len(into) == packing.num_bytes + 8 and not any(into[-8:])
    assert num_refused > 300


def test_a_frame_that_asks_for_more_memory_than_a_block_has_is_refused():
    packing = packing_of(KVLayout(((1, 64),), "bfloat16"))
    for size in (2**20, 2**40, 2**63):
        frame = struct.pack("<IBQ", 0xFD2FB528, 0b1110_0000, size) + bytes(
            11
        )  # one segment, its size in 8 bytes
        plane = bytes(1024)
        packed = struct.pack("<2I", len(frame), len(plane)) + frame + plane
        with pytest.raises(EntryError):
            packing.unpack([memoryview(packed)], memoryview(bytearray(packing.num_bytes)))


def test_packing_pays_on_a_slow_disk_and_not_where_one_thread_reads_a_fast_one():
    costs = {"unpack_s": 0.5, "take_s": 0.5, "share": 0.69}  # nanoseconds a byte
    assert packing_pays(5.0, **costs, num_threads=1)
    assert packing_pays(0.2, **costs, num_threads=4)
    assert not packing_pays(0.2, **costs, num_threads=1)


def disk_cache(root, codec="packed", warnings=None, **changed):
    """A cache whose only tier is the disk."""
    return tiny_cache(root, warnings, ram_bytes=0, codec=codec, **changed)


def version_of(path) -> int:
    return path.read_bytes()[8]


def test_packed_and_raw_files_lie_side_by_side_and_serve_both(tmp_path):
    root = tmp_path / "kv"
    store(disk_cache(root, "raw"), TOKENS[:20])
    store(disk_cache(root), TOKENS)
    assert sorted(map(version_of, stored_files(root))) == [2, 3]
    for codec in ("raw", "packed"):
        assert load(disk_cache(root, codec), TOKENS).tokens == {"disk": 48}
        assert load(disk_cache(root, codec), TOKENS, 3, 47).tokens == {"disk": 44}


def test_a_packed_file_takes_less_room(tmp_path):
    sizes = {}
    for codec in ("raw", "packed"):
        store(disk_cache(tmp_path / codec, codec), TOKENS)
        sizes[codec] = sum(path.stat().st_size for path in stored_files(tmp_path / codec))
    assert sizes["packed"] < 0.9 * sizes["raw"]


def test_what_this_disk_reads_faster_raw_is_not_packed(tmp_path, monkeypatch):
    monkeypatch.setattr("kvchat.cache.transfer.packing_pays", lambda *measured: False)
    store(disk_cache(tmp_path / "kv"), TOKENS)
    assert list(map(version_of, stored_files(tmp_path / "kv"))) == [2]


def test_a_long_packed_run_is_read_ahead_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("kvchat.cache.transfer.SCRATCH_BYTES", 2 * TINY.bytes_per_token * BLOCK_SIZE)
    root = tmp_path / "kv"
    store(disk_cache(root), TOKENS[:28])
    store(disk_cache(root), TOKENS)
    assert load(disk_cache(root), TOKENS).end == 48
    for path in stored_files(root):
        if path.name.split("-")[4].startswith("28+"):
            path.write_bytes(path.read_bytes()[:-9] + b"?" + path.read_bytes()[-8:])
    damaged = {path: path.read_bytes() for path in stored_files(root)}
    for _ in range(10):  # which thread is the first to see it is chance
        warnings: list[str] = []
        assert load(disk_cache(root, warnings=warnings), TOKENS).end in (28, 36, 44) and len(warnings) == 1
        for path, content in damaged.items():
            path.write_bytes(content)


@pytest.mark.parametrize(("codec", "version"), [("packed", 2), ("raw", 3), ("int8", 3)])
def test_a_file_that_lies_about_being_packed_is_a_miss(tmp_path, codec, version):
    root = tmp_path / "kv"
    store(disk_cache(root, codec), TOKENS)
    (path,) = stored_files(root)
    content = bytearray(path.read_bytes())
    content[8] = version
    path.write_bytes(content)
    warnings: list[str] = []
    planes = computed_arena([])
    cache = disk_cache(root, codec, warnings)
    with cache.lease(cache.match(TOKENS)) as lease:
        assert cache.load(lease, planes, 0, 48).end == 0 and len(warnings) == 1


def test_a_folder_of_packed_files_is_described_as_one_of_raw_ones(tmp_path):
    store(disk_cache(tmp_path / "kv"), TOKENS)
    (path,) = stored_files(tmp_path / "kv")
    meta = json.loads((path.parent / "meta.json").read_text())
    assert FolderMeta.from_json(meta).codec == "raw"
