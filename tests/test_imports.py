"""What each command loads: listings, help and completion stay light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "tokenizers", "prompt_toolkit", "rich", "huggingface_hub"}

LIGHT = (
    "--help",
    "--version",
    "models ls",
    "cache ls",
    "cache stat",
    "cache path",
    "cache prune",
    "cache clear",
    "cache verify --no-recompute",
    "cache --help",
    "config path",
    "config show",
    "completion bash",
    "completion zsh",
    "completion fish",
    "doctor --help",
    "sessions ls",
    "sessions search x",
    "prompts ls",
)


READS_KV = {line for line in LIGHT if line.startswith("cache ")} - {"cache --help"} | {"sessions ls"}
"""What knows the files of stored KV, and so numpy."""


@pytest.mark.parametrize("line", LIGHT)
def test_what_needs_no_model_and_no_screen_loads_none(tmp_path: Path, line: str) -> None:
    heavy = HEAVY if line in READS_KV else HEAVY | {"numpy"}
    program = (
        "import sys, atexit, kvchat.cli\n"
        f"atexit.register(lambda: print('heavy:', {heavy!r} & set(sys.modules), file=sys.stderr))\n"
        f"sys.exit(kvchat.cli.main({line.split()!r}))"
    )
    folders = {f"KVCHAT_{name}": str(tmp_path / name) for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG")}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=os.environ | folders, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "heavy: set()\n")
    assert result.stdout or line.split()[0] in ("cache", "sessions", "prompts")


def test_the_light_commands_are_told_from_the_heavy(tmp_path: Path) -> None:
    program = "import sys, kvchat.backends.local; sys.exit(not {'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
