"""How a dialogue ends, is stopped or loses its engine, in a real pseudo-terminal. The backend is scripted."""

import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.terminal import Terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path).ready()
    yield opened
    opened.child.close(force=True)


def opened(folder: Path, *argv: str, **more: object) -> Terminal:
    return Terminal(folder, *argv, **more).ready()  # type: ignore[arg-type]


def is_stopped(pid: int) -> bool:
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True).stdout.startswith(b"T")


def test_ctrl_c_clears_the_input_then_hints_then_leaves(terminal: Terminal) -> None:
    terminal.type("never sent")
    terminal.wait_for("> never sent")
    terminal.type("\x03")
    terminal.until(lambda: "> never sent" not in terminal.visible, "the empty input")
    terminal.type("\x03")
    terminal.wait_for("Ctrl-C again leaves")
    terminal.type("\x03")
    assert terminal.end() == 0
    assert "you said" not in "\n".join(terminal.rows)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("overflow", "! 9000 tokens do not fit a context of 8192: shorten it, or /clear"),
        ("die", "! the engine ended (signal 9): it is started again"),
        ("break 3", "! the engine ended (signal 9): it is started again"),
    ],
)
def test_what_could_not_be_sent_is_back_in_the_input(terminal: Terminal, message: str, line: str) -> None:
    terminal.enter(message)
    terminal.wait_for(line)
    terminal.until(lambda: terminal.visible[-2] == f"> {message}", "the message in the input")
    terminal.type("\x03")
    terminal.enter("still here")
    terminal.wait_for("[1] you said: still here")
    terminal.leave()


def test_an_engine_that_dies_between_two_messages_is_started_again(terminal: Terminal) -> None:
    terminal.enter("expire")
    terminal.wait_for("the engine ended and is started again; the conversation is kept")
    terminal.enter("go on")
    terminal.wait_for("[3] you said: go on")
    terminal.leave()


def test_a_model_that_can_not_be_had_ends_the_dialogue_and_keeps_what_was_typed(tmp_path: Path) -> None:
    terminal = opened(tmp_path, "-m", "nobody", environ={"KVCHAT_TEST_LOAD_S": "1"})
    terminal.enter("sent early")
    terminal.type("half a thought")
    assert terminal.end() == 3
    assert terminal.rows.count("kvchat: no model is called 'nobody': see kvchat models ls") == 1
    assert terminal.is_cursor_shown
    history = (tmp_path / "DATA" / "history").read_text()
    assert "+sent early" in history
    assert "+half a thought" in history


def test_history_is_recalled_across_runs_and_private(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.enter("remember me")
    first.wait_for("you said: remember me")
    first.settle()
    first.leave()
    path = tmp_path / "DATA" / "history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = opened(tmp_path)
    second.type("\x1b[A")
    second.wait_for("> remember me")
    second.type("\x03")
    second.leave()


def test_no_save_leaves_nothing_on_disk(tmp_path: Path) -> None:
    terminal = opened(tmp_path, "--no-save")
    terminal.enter("secret")
    terminal.wait_for("you said: secret")
    terminal.settle()
    terminal.leave()
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_in_order_even_in_mid_answer(terminal: Terminal, signum: signal.Signals) -> None:
    terminal.enter("slow 500")
    terminal.wait_for("word3")
    terminal.kill(signum)
    assert terminal.end() == 128 + signum
    assert terminal.is_cursor_shown
    assert b"\x1b[?2004l" in terminal.raw[-200:]


def test_a_terminal_that_goes_away_ends_the_program(terminal: Terminal) -> None:
    terminal.enter("slow 500")
    terminal.wait_for("word3")
    assert terminal.hang_up() == 128 + signal.SIGHUP


def test_ctrl_d_leaves_in_mid_answer(terminal: Terminal) -> None:
    terminal.enter("slow 500")
    terminal.wait_for("word3")
    terminal.leave()


def test_stopping_and_continuing_the_program_redraws_the_screen(terminal: Terminal) -> None:
    terminal.enter("slow 50")
    terminal.wait_for("word3")
    terminal.type("\x1a")
    terminal.until(lambda: is_stopped(terminal.child.pid), "its stop")
    terminal.kill(signal.SIGCONT)
    terminal.wait_for("word49")
    terminal.settle()
    terminal.enter("after")
    terminal.wait_for("[3] you said: after")
    terminal.leave()
