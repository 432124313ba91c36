"""The live part in a terminal that rewraps its rows, and in a real one: tmux."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvchat.ui.reflow import num_rows
from tests.ui.terminal import TIMEOUT_S

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")


class Tmux:
    """kvchat with the scripted backend in a tmux of its own."""

    def __init__(self, folder: Path, columns: int, rows: int) -> None:
        self._socket = str(folder / "tmux")
        folders = [f"KVCHAT_{name}={folder / name}" for name in ("CACHE_DIR", "DATA", "CONFIG", "MODELS")]
        size = ("-x", str(columns), "-y", str(rows))
        child = ("env", *folders, sys.executable, "-m", "tests.scripted_cli")
        self.ask("-f", os.devnull, "new-session", "-d", *size, *child)
        self.ask("set", "-g", "status", "off")

    def ask(self, *words: str) -> str:
        command = ("tmux", "-S", self._socket, *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def enter(self, text: str) -> None:
        self.ask("send-keys", "-l", text)
        self.ask("send-keys", "Enter")

    @property
    def rows(self) -> list[str]:
        """All that was scrolled out and all that is visible, what the terminal wrapped in one."""
        return self.ask("capture-pane", "-p", "-J", "-S", "-5000").rstrip("\n").split("\n")

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not re.search(pattern, "\n".join(self.rows)):
            assert time.monotonic() < deadline, f"never came: {pattern}\n" + "\n".join(self.rows)
            time.sleep(0.05)


def test_characters_are_rewrapped_whole() -> None:
    assert num_rows([], 10) == 1
    assert num_rows([1] * 10, 10) == 1
    assert num_rows([1] * 11, 10) == 2
    assert num_rows([2] * 5, 9) == 2, "four of two cells fit"
    assert num_rows([2] * 9, 9) == 3


def resized(tmux: Tmux) -> tuple[list[int], list[int], int]:
    """The words and lines that are shown once the window was narrowed and widened in mid-answer, and how often the message is."""
    tmux.wait_for("ready")
    tmux.enter("lines 40")
    tmux.wait_for("line number 39\n[^$]*ctx .*\n[^$]*ready")
    tmux.enter("slow 100")
    for number, columns in ((40, 61), (60, 37), (75, 90), (85, 45)):
        tmux.wait_for(rf"word{number}\b")
        tmux.ask("resize-window", "-x", str(columns))
    tmux.wait_for(r"cached 122/124")
    shown = " ".join(tmux.rows)
    words, lines = (
        [int(n) for n in re.findall(f"{what} ?(\\d+)", shown)] for what in ("word", "line number")
    )
    return words, lines, tmux.rows.count("> slow 100")


@needs_tmux
def test_a_terminal_that_rewraps_keeps_no_ghost_of_an_answer_and_loses_nothing(tmp_path: Path) -> None:
    """Tried three times at most: a frame for the old width that is under way while tmux takes the new one nobody takes back."""
    expected = list(range(100)), list(range(40)), 1
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        tmux = Tmux(folder, 100, 40)
        found = resized(tmux)
        tmux.ask("kill-server")
        if found == expected:
            break
    assert found == expected
