"""Several processes on one folder: at once, and killed in mid-write."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvchat.cache.folder import scan_folder
from kvchat.cache.maintenance import verify_checksums
from tests.cache.arena import load, store, tiny_cache

ROOT_OF_TESTS = Path(__file__).parents[2]

WRITE_FOREVER = """
import sys
from pathlib import Path
from tests.cache.arena import store, tiny_cache
codec = ["raw", "packed"][int(sys.argv[2]) % 2]
cache = tiny_cache(Path(sys.argv[1]), ram_bytes=0, codec=codec)
for number in range(10_000):
    store(cache, [int(sys.argv[2]), number % 500] * 16)
    if number == 0:
        print("ready", flush=True)
"""

TAKE_TURNS = """
import sys
from pathlib import Path
from tests.cache.arena import load, store, tiny_cache
warnings = []
me = int(sys.argv[2])
cache = tiny_cache(Path(sys.argv[1]), warnings, lock_timeout_s=60.0, codec=["raw", "packed"][me % 2])
for number in range(50):
    tokens = [7] * 8 + [me] * 4 + [number] * 12
    store(cache, tokens)
    cache.clear_ram()
    assert load(cache, tokens).tokens == {"disk": 24}, number
    load(cache, [7] * 8 + [3 - me] * 4 + [number] * 12)
cache.check_integrity()
assert cache.close()
assert not warnings, warnings
print("done")
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT_OF_TESTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill_in_mid_write(root: Path, number: int, chance: random.Random) -> None:
    child = start(WRITE_FOREVER, root, number)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(chance.random() * 0.1)
    child.kill()
    child.communicate()


def survive_kills(root: Path, num_kills: int) -> None:
    chance = random.Random(3)
    for number in range(num_kills):
        kill_in_mid_write(root, number, chance)
        cache = tiny_cache(root)
        assert not scan_folder(root).left_over
        for done in range(500):
            tokens = [number, done] * 16
            if load(cache, tokens).end == 0:
                break
        store(cache, [999, number] * 16)
        assert load(cache, [999, number] * 16).end == 32
        cache.close()
        assert verify_checksums(root).is_clean
    assert len(scan_folder(root).files) > num_kills


def test_a_kill_in_mid_write_leaves_only_whole_files(tmp_path):
    survive_kills(tmp_path / "kv", 4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_kills_in_mid_write_leave_only_whole_files(tmp_path):
    survive_kills(tmp_path / "kv", 100)


def test_two_processes_at_once_lose_nothing_and_see_each_other(tmp_path):
    root = tmp_path / "kv"
    children = [start(TAKE_TURNS, root, number) for number in (1, 2)]
    for child in children:
        printed, complaints = child.communicate(timeout=150)
        assert (printed, child.returncode) == ("done\n", 0), complaints
    assert verify_checksums(root).is_clean and not scan_folder(root).left_over
    cache = tiny_cache(root)
    for me in (1, 2):
        for number in range(50):
            assert load(cache, [7] * 8 + [me] * 4 + [number] * 12).tokens == {"disk": 24}
    shared = [file for file in scan_folder(root).files if file.name.start == 0]
    assert len(shared) == 1
