"""Ctrl-C while the program starts and loads its model: exit code 130, at once, and not a word."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ui.terminal import Terminal

SIGTERM_CAUGHT = 1 << (signal.SIGTERM - 1)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "KVCHAT_SHARE" or not name.startswith("KVCHAT_")
    }
    folders = {f"KVCHAT_{name}": str(tmp_path / name) for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG")}
    return kept | folders | {"TERM": "xterm-256color"}


def wait_until_it_runs(pid: int) -> None:
    """Until it handles signals itself: what comes earlier meets an interpreter that is not there yet."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        time.sleep(0.5)
        return
    while not int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & SIGTERM_CAUGHT:
        time.sleep(0.001)


def one_shot(environ: dict[str, str], argv: list[str], delay_s: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kvchat", *argv],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        wait_until_it_runs(child.pid)
        time.sleep(delay_s)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=100)
    assert child.returncode == 130
    assert errors in (b"", b"kvchat: stopped by you\n")  # the latter where the model had come already


def dialogue(folder: Path, argv: list[str], delay_s: float) -> None:
    """Once it takes keys the first Ctrl-C is answered by a hint, and the second ends it."""
    terminal = Terminal(folder, *argv, module="kvchat")
    wait_until_it_runs(terminal.child.pid)
    time.sleep(delay_s)
    terminal.kill(signal.SIGINT)
    terminal.until(
        lambda: not terminal.child.isalive() or "again leaves" in terminal.visible[-1], "an effect"
    )
    if terminal.child.isalive():
        terminal.kill(signal.SIGINT)
    code, said = terminal.end(), "\n".join(terminal.rows)
    assert code == 130 or (code == 0 and "million parameters" in said), said  # by then the model had come
    assert "Exception" not in said


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("times", [2, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", ["dialogue", "-p", "--turns"])
def test_an_interrupt_while_the_model_loads_ends_it(
    environ: dict[str, str], long_path: Path, tmp_path: Path, way: str, times: int
) -> None:
    (tmp_path / "turns").write_text("hello\nworld\n")
    model = ["-m", str(long_path), "--dtype", "float32", "--max-tokens", "29000"]
    asked = {"-p": ["-p", "hello"], "--turns": ["--turns", str(tmp_path / "turns")]}
    rng = random.Random(f"{way} {times}")
    for _ in range(times):
        if way in asked:
            one_shot(environ, [*model, *asked[way]], rng.uniform(0.0, 1.5))
        else:
            dialogue(tmp_path, model, rng.uniform(0.0, 1.5))
