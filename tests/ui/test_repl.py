"""The dialogue in a real pseudo-terminal, seen through a terminal emulator. The backend is scripted."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.terminal import Terminal, figures


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path).ready()
    yield opened
    opened.child.close(force=True)


def opened(folder: Path, *argv: str, **more: object) -> Terminal:
    return Terminal(folder, *argv, **more).ready()  # type: ignore[arg-type]


def test_a_message_is_answered_and_ctrl_d_leaves_in_order(terminal: Terminal) -> None:
    terminal.enter("hello there")
    terminal.wait_for("[1] you said: hello there")
    terminal.settle()
    assert "> hello there" in terminal.rows
    (line,) = figures(terminal.rows)
    assert re.fullmatch(
        r"cached 0/2 \(0%\) · prefill 2 in 0\.01s · ttft 0\.0\ds · 3 tok [\d.]+/s · ctx 5/8192", line
    )
    terminal.leave()
    assert terminal.is_cursor_shown
    assert not any("ready" in row for row in terminal.rows)


def test_typing_is_taken_while_the_model_loads_and_the_message_is_queued(tmp_path: Path) -> None:
    terminal = opened(tmp_path, environ={"KVCHAT_TEST_LOAD_S": "1.5"})
    terminal.enter("early bird")
    terminal.wait_for("queued: early bird")
    terminal.wait_for("loading ")
    terminal.wait_for("[1] you said: early bird")
    terminal.settle()
    assert not any("queued" in row for row in terminal.rows)
    terminal.leave()


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(terminal: Terminal) -> None:
    terminal.enter("slow 500")
    terminal.wait_for("word5")
    terminal.type("\x03")
    terminal.wait_for("stopped by you")
    terminal.enter("go on")
    terminal.wait_for("[3] you said: go on")
    shown = "\n".join(terminal.rows)
    assert "word5" in shown
    assert "word400" not in shown
    terminal.leave()


@pytest.mark.parametrize("how", ["\x1b", signal.SIGINT])
def test_escape_and_sigint_stop_an_answer_too(terminal: Terminal, how: str | signal.Signals) -> None:
    terminal.enter("slow 500")
    terminal.wait_for("word5")
    if isinstance(how, str):
        terminal.type(how)
    else:
        terminal.kill(how)
    terminal.wait_for("stopped by you")
    terminal.leave()


def test_ctrl_c_before_the_first_token_gives_the_message_back(terminal: Terminal) -> None:
    terminal.enter("long 100")
    terminal.wait_for("prefill ")
    terminal.wait_for("tok/s")
    terminal.type("\x03")
    terminal.wait_for("stopped")
    terminal.until(lambda: "> long 100" in terminal.visible[-2], "the message in the input")
    terminal.type("\x03")
    terminal.enter("other")
    terminal.wait_for("[1] you said: other")
    terminal.leave()


@pytest.mark.parametrize("key", ["\x1b\r", "\n", "\\\r"])
def test_alt_enter_ctrl_j_and_a_backslash_make_a_new_line(terminal: Terminal, key: str) -> None:
    terminal.type(f"first{key}second")
    terminal.wait_for("  second")
    terminal.type("\r")
    terminal.wait_for("[1] you said: first")
    terminal.settle()
    assert terminal.rows.count("second") == 1
    assert terminal.rows.count("> first") == 1
    terminal.leave()


def test_messages_queue_up_while_an_answer_streams(terminal: Terminal) -> None:
    terminal.enter("slow 40")
    terminal.wait_for("word3")
    terminal.enter("second")
    terminal.enter("third")
    terminal.wait_for("queued: third")
    terminal.wait_for("[5] you said: third")
    terminal.settle()
    shown = "\n".join(terminal.rows)
    assert shown.index("> slow 40") < shown.index("[3] you said: second") < shown.index("[5] you said: third")
    assert len(figures(terminal.rows)) == 3
    terminal.leave()


def test_up_takes_the_queued_message_back(terminal: Terminal) -> None:
    terminal.enter("slow 100")
    terminal.wait_for("word3")
    terminal.enter("second thoughts")
    terminal.wait_for("queued: second thoughts")
    terminal.type("\x1b[A")
    terminal.until(lambda: "> second thoughts" in terminal.visible, "the message in the input")
    assert not any("queued" in row for row in terminal.visible)
    terminal.type("\x03")
    terminal.wait_for("stopped")
    terminal.type("\x03")
    terminal.leave()


def test_an_unknown_command_names_the_nearest_and_is_not_sent(terminal: Terminal) -> None:
    terminal.enter("/hlep")
    terminal.wait_for("no command is called /hlep: did you mean /help?")
    terminal.enter("//literal")
    terminal.wait_for("[1] you said: /literal")
    terminal.leave()


def test_tab_completes_commands(terminal: Terminal) -> None:
    terminal.type("/s\t")
    terminal.wait_for("/system  /set  /stats")
    terminal.type("ta\t\r")
    terminal.wait_for("nothing has been answered yet")
    terminal.leave()


def test_every_command_does_what_it_says(terminal: Terminal) -> None:
    terminal.enter("/help")
    terminal.wait_for("/tokens [TEXT]")
    terminal.enter("/system be brief")
    terminal.wait_for("the system prompt is replaced")
    terminal.enter("/tokens one two three")
    terminal.wait_for("3 tokens")
    terminal.enter("/set temperature 0.5")
    terminal.wait_for("temperature = 0.5")
    terminal.enter("/set temperature hot")
    terminal.wait_for("'hot' is not a number")
    terminal.enter("/set temprature 1")
    terminal.wait_for("did you mean 'temperature'?")
    terminal.enter("/set max_tokens 2")
    terminal.wait_for("max_tokens = 2")
    terminal.enter("slow 9")
    terminal.wait_for("word1")
    terminal.settle()
    assert "word2" not in "\n".join(terminal.rows)
    terminal.enter("/stats")
    terminal.wait_for("answers 1 · generated 2 tokens")
    terminal.enter("/clear")
    terminal.wait_for("a new conversation begins; the system prompt stays")
    terminal.enter("/set max_tokens default")
    terminal.wait_for("max_tokens = 4096")
    terminal.enter("fresh")
    terminal.wait_for("[2] you said: fresh")
    terminal.enter("/exit")
    assert terminal.end() == 0
