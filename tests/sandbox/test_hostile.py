"""Templates and prompts that want too much end soon, stay small, say so in one line, and do nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.sandbox.hostile import HOSTILE, MARKER
from tests.tiny import tiny_folder

ROOT = Path(__file__).parents[2]
EXIT_CODES = {"template": (0, 3), "prompt": (0, 2)}
SECONDS, MEGABYTES = 10, 1000


def results(kind: str, sources: Sequence[str], folder: Path) -> list[dict[str, object]]:
    """What became of each in a process that works in `folder`."""
    lines = "".join(
        json.dumps([kind, source.replace(MARKER, str(folder / MARKER))]) + "\n" for source in sources
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT), "KVCHAT_CONFIG": str(folder / "none.toml")}
    command = [sys.executable, "-m", "tests.sandbox.attempt"]
    done = subprocess.run(command, input=lines, env=environ, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_harmless(kind: str, sources: Sequence[str], folder: Path) -> None:
    found = results(kind, sources, folder)
    assert len(found) == len(sources)
    for source, result in zip(sources, found, strict=True):
        name, said = source[:200], str(result["said"])
        assert result["code"] in EXIT_CODES[kind], name
        assert bool(said) is bool(result["code"]), name
        assert "\n" not in said, name
        assert len(said) < 600, name
        assert float(str(result["seconds"])) < SECONDS, name
        assert int(str(result["peak_mb"])) < MEGABYTES, name
    assert not (folder / MARKER).exists()


@pytest.mark.parametrize("kind", ["template", "prompt"])
def test_some_hostile_ones_are_stopped(kind: str, tmp_path: Path) -> None:
    assert_harmless(kind, HOSTILE[::60], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["template", "prompt"])
def test_all_hostile_ones_are_stopped(kind: str, tmp_path: Path) -> None:
    assert len(HOSTILE) >= 200
    assert_harmless(kind, HOSTILE, tmp_path)


def test_the_command_line_says_one_line_and_exits_as_documented(tmp_path: Path) -> None:
    bomb = "{{ [1]|tojson(indent=10**6) }}"
    (tmp_path / "hostile.md").write_text(bomb)
    model = tiny_folder(tmp_path / "model", template=bomb)
    folders = {f"KVCHAT_{name}": str(tmp_path / name) for name in ("CACHE_DIR", "DATA", "MODELS", "CONFIG")}
    for flags, code in ((["-t", str(tmp_path / "hostile.md")], 2), (["-m", str(model)], 3)):
        command = [sys.executable, "-m", "kvchat", *flags, "-p", "hello", "--no-save"]
        done = subprocess.run(
            command, env=os.environ | folders, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1), done.stderr
        assert "the template is stopped" in done.stderr or "the chat template is stopped" in done.stderr
