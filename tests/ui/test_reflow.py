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

    def resize(self, columns: int) -> None:
        """Resize the window, and wait until its terminal has the size too: tmux takes its time to say so."""
        self.ask("resize-window", "-x", str(columns))
        terminal = os.open(self.ask("display", "-p", "#{pane_tty}").strip(), os.O_RDONLY | os.O_NOCTTY)
        deadline = time.monotonic() + TIMEOUT_S
        while os.get_terminal_size(terminal).columns != columns:
            assert time.monotonic() < deadline, f"it never got {columns} columns"
            time.sleep(0.01)
        os.close(terminal)

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


@needs_tmux
def test_a_terminal_that_rewraps_keeps_no_ghost_of_an_answer_and_loses_nothing(tmp_path: Path) -> None:
    source, hold = tmp_path / "a", tmp_path / "a.hold"
    source.write_text(" ".join(f"word{number}" for number in range(100)))
    tmux = Tmux(tmp_path, 100, 40)
    tmux.wait_for("ready")
    tmux.enter("lines 40")
    tmux.wait_for("line number 39\n[^$]*ctx .*\n[^$]*ready")
    hold.write_text("word41")  # nothing is being drawn for one size while the terminal takes another
    tmux.enter(f"file {source}")
    for last, columns, then in ((40, 61, "word61"), (60, 37, "word76"), (75, 90, "word86"), (85, 45, "")):
        tmux.wait_for(rf"word{last}\b")
        tmux.resize(columns)
        hold.write_text(then) if then else hold.unlink()
    tmux.wait_for(r"(?s)cached \d.*cached \d")
    shown = " ".join(tmux.rows)
    assert [int(n) for n in re.findall(r"word ?(\d+)", shown)] == list(range(100))
    assert [int(n) for n in re.findall(r"line number (\d+)", shown)] == list(range(40))
    assert tmux.rows.count(f"> file {source}") == 1
    tmux.ask("kill-server")
