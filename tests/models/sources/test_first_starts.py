"""A first start that is killed, or finds the disk full: the next one is right, and nothing is left behind.

A start here is what the first one of a GGUF does to files: import it, make its integers, remember hashes and a verdict.
"""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from kvchat.config import ModelConfig
from kvchat.errors import KvchatError
from kvchat.models.loader import Origins, load_model
from kvchat.models.probe import checked
from kvchat.models.sources.contents import MEMORY_NAME
from tests.models.isolated import catalog
from tests.models.tiny_gguf import Type, tiny_hf_model, write_gguf

TOKENS = [5, 77, 200, 9, 9, 31, 150]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny_hf_model(hidden=128), tensor_type=Type.Q4_1)
    past = time.time() - 60
    os.utime(path, (past, past))
    return path


def start(root: Path, gguf: Path) -> torch.Tensor:
    """A model's first logits, after all that its first start writes."""
    files = catalog(root).resolve(str(gguf))
    settings = ModelConfig(dtype="float32", device="cpu")
    model = load_model(files.folder, settings, origin=Origins(files.gguf, root))
    checked(model, b"mark", root, lambda: lambda num_tokens: 0.0)
    return model.forward(TOKENS, model.new_state())


def kinds_of_files(root: Path) -> list[str]:
    """What lies there, without hashes, and without the memory of hashes, which are remembered of no file that is new."""
    names = sorted(re.sub(r"[0-9a-f]{16,}", "#", str(path.relative_to(root))) for path in root.rglob("*"))
    return [name for name in names if name != MEMORY_NAME]


@pytest.fixture(scope="module")
def expected(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, list[str]]:
    """The logits of an undisturbed start, and the files that it leaves."""
    root = tmp_path_factory.mktemp("undisturbed") / "models"
    return start(root, gguf), kinds_of_files(root)


def in_child(do: Callable[[], object]) -> int:
    """How a child of this process ends that does this: what `waitpid` says."""
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)  # those of the parent are not here, and would be waited for
        try:
            do()
        except KvchatError:
            os._exit(3)
        except BaseException:
            os._exit(4)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_at(number: int, root: Path, gguf: Path) -> bool:
    """Start in a child that is killed when it opens, renames, makes or deletes something there for the nth time; whether it
    came to that."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(root) in str(
            arguments[0]
        ):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def do() -> None:
        sys.addaudithook(hook)
        start(root, gguf)

    status = in_child(do)
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


def check_next_start(root: Path, gguf: Path, expected: tuple[torch.Tensor, list[str]]) -> None:
    logits, files = expected
    assert torch.equal(start(root, gguf), logits)
    assert kinds_of_files(root) == files


MOMENTS = random.Random(11).sample(range(1, 45), 10)


@pytest.mark.parametrize("moment", MOMENTS[:3])
def test_a_start_that_was_killed_is_made_up_for_by_the_next(
    moment: int, tmp_path: Path, gguf: Path, expected: tuple[torch.Tensor, list[str]]
) -> None:
    assert killed_at(moment, tmp_path / "models", gguf), "it does less than that"
    check_next_start(tmp_path / "models", gguf, expected)


def test_a_start_that_is_killed_again_and_again_comes_to_its_end(
    tmp_path: Path, gguf: Path, expected: tuple[torch.Tensor, list[str]]
) -> None:
    for moment in MOMENTS:
        killed_at(moment, tmp_path / "models", gguf)
    check_next_start(tmp_path / "models", gguf, expected)


@pytest.mark.slow
def test_a_start_that_was_killed_at_any_moment_is_made_up_for_by_the_next(
    tmp_path: Path, gguf: Path, expected: tuple[torch.Tensor, list[str]]
) -> None:
    moment = 1
    while killed_at(moment, tmp_path / f"{moment}", gguf):
        check_next_start(tmp_path / f"{moment}", gguf, expected)
        moment += 1
    assert moment > max(MOMENTS)


@pytest.mark.parametrize("most_bytes", [0, 300, 3_000, 40_000])
def test_where_files_can_only_be_small_a_start_says_so_or_does_without_and_leaves_nothing(
    most_bytes: int, tmp_path: Path, gguf: Path, expected: tuple[torch.Tensor, list[str]]
) -> None:
    root = tmp_path / "models"

    def do() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        assert torch.equal(start(root, gguf), expected[0])

    status = os.waitstatus_to_exitcode(in_child(do))
    assert status == (3 if most_bytes < 40_000 else 0)
    assert not [path for path in kinds_of_files(root) if ".new" in path or path.endswith(".safetensors")]
    check_next_start(root, gguf, expected)


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[None]:
    """A file system of so many bytes, where this may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("num_kilobytes", [4, 40, 150])
def test_a_full_disk_costs_an_error_or_time_and_nothing_else(
    num_kilobytes: int, tmp_path: Path, gguf: Path, expected: tuple[torch.Tensor, list[str]]
) -> None:
    with small_disk(tmp_path / "disk", num_kilobytes << 10):
        root = tmp_path / "disk" / "models"
        status = os.waitstatus_to_exitcode(in_child(lambda: start(root, gguf)))
        assert status in (0, 3)
        assert not [path for path in kinds_of_files(root) if ".new" in path]
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path / "disk")], check=True)
        check_next_start(root, gguf, expected)
