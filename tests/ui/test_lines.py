"""The dialogue line by line, in a real pseudo-terminal."""

import signal
import time
from pathlib import Path

import pytest

from tests.ui.terminal import Terminal


@pytest.mark.parametrize(("argv", "term"), [(("--plain",), "xterm-256color"), ((), "dumb")])
def test_a_plain_dialogue_has_no_escape_sequences(tmp_path: Path, argv: tuple[str, ...], term: str) -> None:
    terminal = Terminal(tmp_path, *argv, environ={"TERM": term})
    terminal.wait_for(">")
    terminal.enter("hello")
    terminal.wait_for("[1] you said: hello")
    terminal.settle()
    terminal.enter("/stats")
    terminal.wait_for("answers 1 ·")
    terminal.enter("/hlep")
    terminal.wait_for("did you mean /help?")
    terminal.enter("one\\")
    terminal.enter("two")
    terminal.wait_for("[3] you said: one")
    terminal.settle()
    assert b"\x1b" not in terminal.raw
    terminal.leave()


def test_ctrl_c_stops_a_plain_answer_and_only_hints_at_the_prompt(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "--plain")
    terminal.wait_for(">")
    terminal.enter("slow 500")
    terminal.wait_for("word5")
    terminal.kill(signal.SIGINT)
    terminal.wait_for("stopped by you")
    for _ in range(20):  # a key in the instant before `input` reads is lost
        terminal.type("\x03")
        time.sleep(0.3)
        terminal.read()
        if any("Ctrl-D leaves" in row for row in terminal.rows):
            break
    terminal.wait_for("Ctrl-D leaves")
    terminal.enter("go on")
    terminal.wait_for("[3] you said: go on")
    terminal.settle()
    terminal.enter("/exit")
    assert terminal.end() == 0


def test_a_plain_dialogue_without_a_model_ends_with_its_exit_code(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "--plain", "-m", "nobody")
    terminal.wait_for(">")
    terminal.enter("hello")
    assert terminal.end() == 3
    assert any("no model is called 'nobody'" in row for row in terminal.rows)
