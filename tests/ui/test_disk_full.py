"""A full disk, and a history that is gone or can't be written: what is not kept is said once, every message is answered."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ui.terminal import Terminal

SAID = "the chat goes on without it"


def as_folder(path: Path) -> None:
    path.mkdir(parents=True)


def as_pipe(path: Path) -> None:
    path.parent.mkdir(parents=True)
    os.mkfifo(path)


def as_full_disk(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/full")


def as_loop(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to(path)


@pytest.mark.parametrize("spoil", [as_folder, as_pipe, as_full_disk, as_loop])
def test_a_history_that_is_no_file_stops_no_message_and_no_signal(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(tmp_path / "DATA" / "history")
    terminal = Terminal(tmp_path, columns=200).ready()
    for number, message in enumerate(("one", "two", "three")):
        terminal.enter(message)
        terminal.wait_for(f"[{1 + 2 * number}] you said: {message}")
        terminal.settle()
    assert "\n".join(terminal.rows).count(SAID) == 1
    terminal.type("half typed")
    terminal.wait_for("> half typed")
    terminal.kill(signal.SIGTERM)
    assert terminal.end() == 128 + signal.SIGTERM


def test_a_history_that_is_taken_away_is_begun_anew(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path).ready()
    terminal.enter("one")
    terminal.wait_for("[1] you said: one")
    terminal.settle()
    (tmp_path / "DATA" / "history").unlink()
    terminal.enter("two")
    terminal.wait_for("[3] you said: two")
    terminal.settle()
    terminal.leave()
    history = tmp_path / "DATA" / "history"
    assert "+two" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


def test_where_no_file_may_grow_each_message_is_answered(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # the child's too; its terminal is no file
    try:
        terminal = Terminal(tmp_path, columns=200).ready()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_goes_on(terminal)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A small file system on which nothing is left."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave not a byte."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass


@pytest.mark.parametrize("is_full_from_the_start", [True, False])
def test_on_a_full_disk_each_message_is_answered(full: Path, is_full_from_the_start: bool) -> None:
    if is_full_from_the_start:
        fill(full)
    terminal = Terminal(full, columns=200).ready()
    if not is_full_from_the_start:
        terminal.enter("first")
        terminal.wait_for("[1] you said: first")
        terminal.settle()
        fill(full)
    assert_goes_on(terminal, before=0 if is_full_from_the_start else 2)


def test_an_engine_on_a_full_disk_answers_each_message(full: Path, tiny_path: Path) -> None:
    flags = ("-m", str(tiny_path), "--dtype", "float32", "--max-tokens", "4")
    terminal = Terminal(full, *flags, columns=200, module="kvchat").ready()
    terminal.enter("first")
    terminal.settle()
    fill(full)
    for number in range(3):
        terminal.enter(f"message {number} " + "and so on " * 20)
        terminal.settle()
    text = "\n".join(terminal.rows)
    assert "internal error" not in text
    assert "the engine ended" not in text
    terminal.leave()


def assert_goes_on(terminal: Terminal, before: int = 0) -> None:
    """Messages are answered, commands work, and the end is in order."""
    for number in range(3):
        terminal.enter(f"message {number}")
        terminal.wait_for(f"[{before + 1 + 2 * number}] you said: message {number}")
        terminal.settle()
    text = "\n".join(terminal.rows)
    assert "internal error" not in text
    assert text.count(SAID) <= 1
    assert text.count("is not saved") <= 1
    for command, shown in (("/stats", "answers"), ("/system be brief", "replaced"), ("/new", "begins")):
        terminal.enter(command)
        terminal.wait_for(shown)
    terminal.enter("again")
    terminal.wait_for("you said: again")
    terminal.settle()
    terminal.type("half typed")
    terminal.wait_for("> half typed")
    terminal.kill(signal.SIGTERM)
    assert terminal.end() == 128 + signal.SIGTERM
    assert "internal error" not in "\n".join(terminal.rows)
