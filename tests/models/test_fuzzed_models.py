"""Damaged model folders and GGUF files: each ends in one line and a documented exit code, soon and in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models.fuzz_server import LIMIT_S
from tests.models.tiny_gguf import write_gguf
from tests.tiny import tiny_folder

CODES = (0, 3, 4, 5)
OURS = ("kvchat: ", "note: ", "the GGUF's pre-tokenizer ")
"""How a line on stderr may begin."""
MAX_BYTES = 10**9
"""More than what all cases have in common."""


def results(tmp_path: Path, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
    """What became of each case, in one process that forks them off."""
    bases = [tiny_folder(tmp_path / family, family=family) for family in ("llama", "gemma2")]
    write_gguf(tmp_path / "whole.gguf")
    command = [
        sys.executable,
        "-m",
        "tests.models.fuzz_server",
        str(tmp_path / "whole.gguf"),
        *map(str, bases),
    ]
    threads = {"OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0", "TOKENIZERS_PARALLELISM": "false"}
    environment = os.environ | threads | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        common = json.loads(server.stdout.readline())["rss_bytes"]
        for number in numbers:
            server.stdin.write(f"{number}\n")
            server.stdin.flush()
            result = json.loads(server.stdout.readline())
            yield result | {"rss_bytes": result["rss_bytes"] - common}
        server.stdin.close()


def faults_of(result: dict[str, Any]) -> list[str]:
    """What is wrong with how a case ended."""
    lines = result["stderr"].splitlines()
    is_refused = result["code"] != 0
    checks = {
        "its exit code": result["code"] not in CODES,
        "not one line": is_refused and (len(lines) != 1 or not lines[0].startswith("kvchat: ")),
        "an internal error": "internal error" in result["stderr"] or "Traceback" in result["stderr"],
        "a library's own words": any(not line.startswith(OURS) for line in lines),
        "an endless line": any(len(line) > 1000 for line in lines),
        "too late": result["is_late"] or result["seconds"] > LIMIT_S,
        "too much memory": result["rss_bytes"] > MAX_BYTES,
        "code was run": result["is_executed"],
    }
    return [what for what, is_so in checks.items() if is_so]


def check(tmp_path: Path, numbers: Iterable[int]) -> None:
    found = [(faults, result) for result in results(tmp_path, numbers) if (faults := faults_of(result))]
    assert not found, "\n".join(f"{faults}: {result}" for faults, result in found[:20])


def test_damaged_models_end_in_one_line(tmp_path: Path) -> None:
    check(tmp_path, range(16))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_thousand_damaged_models_end_in_one_line(tmp_path: Path) -> None:
    check(tmp_path, range(5000))
