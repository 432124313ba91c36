"""The dialogue among other programs: pipes, signals, shells, colours, narrow and odd terminals."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from kvchat.ui.greeting import PLACEHOLDER
from tests.ui.terminal import Terminal, figures

COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-7]|38|4[0-7]|48|9[0-7])[;m]")
ANSWER = "say # Title\\n\\n```python\\ndef f(): pass\\n```"


def one_shot(folder: Path, *argv: str, **environ: str) -> "subprocess.CompletedProcess[bytes]":
    """The program in pipes."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "KVCHAT_SHARE" or not name.startswith("KVCHAT_")
    }
    kept.pop("NO_COLOR", None)
    folders = {f"KVCHAT_{name}": str(folder / name) for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG")}
    command = [sys.executable, "-m", "tests.scripted_cli", *argv]
    return subprocess.run(command, env=kept | folders | environ, input=b"", capture_output=True, timeout=60)


def test_colours_follow_the_terminal_and_both_variables(tmp_path: Path) -> None:
    rendered = ("--markdown", "always", "-p", ANSWER)
    assert b"\x1b" not in one_shot(tmp_path, *rendered).stdout
    assert COLOUR.search(one_shot(tmp_path, *rendered, FORCE_COLOR="1").stdout)
    both = one_shot(tmp_path, *rendered, FORCE_COLOR="1", NO_COLOR="1").stdout
    assert b"\x1b[1" in both
    assert not COLOUR.search(both)
    terminal = Terminal(tmp_path, *rendered)
    terminal.end()
    assert COLOUR.search(terminal.raw)


def test_without_a_terminal_nothing_is_drawn(tmp_path: Path) -> None:
    done = one_shot(tmp_path, "-p", "hello", TERM="dumb")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"[1] you said: hello\n", b"")
    nothing = one_shot(tmp_path)
    assert nothing.returncode == 2
    assert nothing.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("engine ls", "kvchat: no engine is running: the next chat starts one"),
        ("sessions ls", "kvchat: no session is saved yet: kvchat begins one"),
        ("sessions search fox", "kvchat: nothing that was said has these words in it"),
        ("cache ls", "kvchat: nothing is stored yet: a chat stores what it computes"),
    ],
)
def test_an_empty_list_says_so_to_whoever_looks(tmp_path: Path, command: str, said: str) -> None:
    own = {"KVCHAT_RUNTIME": str(tmp_path / "RUN")}
    terminal = Terminal(tmp_path, *command.split(), environ=own)
    assert terminal.end() == 0
    assert terminal.rows == [said]
    quiet = one_shot(tmp_path, *command.split(), **own)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, b"", b"")


def test_a_broken_pipe_ends_quietly(tmp_path: Path) -> None:
    command = f"{sys.executable} -m tests.scripted_cli -p 'lines 20000' | head -n 2"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        timeout=60,
        env=os.environ | {"KVCHAT_DATA": str(tmp_path)},
    )
    assert done.stdout == b"line number 0\nline number 1\n"
    assert done.stderr == b""


def test_a_narrow_terminal_shows_everything_within_it(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, columns=40, rows=12).ready()
    terminal.enter("a message that is longer than forty columns, so that it is wrapped")
    terminal.wait_for("[1] you said")
    terminal.settle()
    terminal.enter("/help")
    terminal.wait_for("/exit")
    terminal.type("\x1b\x1b")
    terminal.wait_for("→ 1. a message")
    terminal.type("\x1b")
    terminal.enter("slow 60")
    terminal.wait_for("word50")
    terminal.leave()
    assert terminal.is_cursor_shown


@pytest.mark.parametrize("pause_s", [0.0, 0.005, 0.02, 0.05])
def test_a_ctrl_c_right_after_enter_is_not_lost(tmp_path: Path, pause_s: float) -> None:
    terminal = Terminal(tmp_path).ready()
    for number in range(3):
        terminal.type("long 100\r")
        time.sleep(pause_s)
        terminal.type("\x03")
        terminal.until(
            lambda: any("> long 100" in row for row in terminal.visible[-2:]), "the text in the input"
        )
        terminal.until(lambda: "ready" in terminal.visible[-1], f"the end of answer {number}")
        terminal.type("\x03")
        terminal.until(lambda: terminal.visible[-2] in (">", f"> {PLACEHOLDER}"), "the empty input")
    terminal.enter("go on")
    terminal.wait_for("[1] you said: go on")
    terminal.leave()


def test_loading_shows_how_far_it_is_and_what_waits_can_be_taken_back(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, environ={"KVCHAT_TEST_LOAD_S": "10"}).ready()
    terminal.enter("early")
    terminal.wait_for("queued: early")
    terminal.until(
        lambda: any(re.search(r"loading [█░]{12} \d+%.* s left", row) for row in terminal.visible), "a bar"
    )
    terminal.type("\x03")
    terminal.until(lambda: "> early" in terminal.visible, "the message in the input")
    terminal.type("\x03\x03\x03")
    assert terminal.end() == 130


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_mid_answer_keeps_what_was_said(tmp_path: Path, signum: signal.Signals) -> None:
    terminal = Terminal(tmp_path).ready()
    terminal.enter("slow 500")
    terminal.wait_for("word5")
    terminal.type("half typed")
    terminal.wait_for("> half typed")
    terminal.kill(signum)
    assert terminal.end() == 128 + signum
    (database,) = (tmp_path / "DATA").glob("*.db")
    kept = "".join(str(row) for row in sqlite3.connect(database).iterdump())
    assert "word5" in kept
    assert "+half typed" in (tmp_path / "DATA" / "history").read_text()


def test_a_shells_job_control_works_in_mid_answer(tmp_path: Path) -> None:
    environ = {
        "PS1": "SHELL$ ",
        "TERM": "xterm-256color",
        "KVCHAT_DATA": str(tmp_path),
        "KVCHAT_CONFIG": str(tmp_path / "c"),
    }
    shell = pexpect.spawn(
        "bash", ["--norc", "--noprofile", "-i"], env=os.environ | environ, dimensions=(24, 100), timeout=60
    )
    shell.expect_exact("SHELL$ ")
    shell.sendline(f"{sys.executable} -m tests.scripted_cli")
    shell.expect_exact("ready")
    shell.send("slow 60\r")
    shell.expect_exact("word5 ")
    shell.send("\x1a")
    shell.expect_exact("Stopped")
    shell.expect_exact("SHELL$ ")
    shell.sendline("echo in the $((1 + 1))nd program")
    shell.expect_exact("in the 2nd program")
    shell.sendline("fg")
    shell.expect_exact("word59")
    shell.expect_exact("cached ")
    shell.send("after\r")
    shell.expect_exact("[3] you said: after")
    shell.send("\x04")
    shell.expect_exact("SHELL$ ")
    shell.sendline("exit")
    shell.close()


def test_a_plain_dialogue_says_nothing_twice(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "--plain")
    terminal.wait_for(">")
    terminal.enter("think")
    terminal.settle()
    assert len(figures(terminal.rows)) == 1
    assert sum("[1] you said: think" in row for row in terminal.rows) == 1
    terminal.leave()
