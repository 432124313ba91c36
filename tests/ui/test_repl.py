"""The dialogue in a real pseudo-terminal, seen through a terminal emulator. The backend is scripted."""

import re
import signal
import stat
import subprocess
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


def test_a_paste_of_200_lines_is_one_message(terminal: Terminal) -> None:
    pasted = "\n".join(f"pasted line {n}" for n in range(200))
    terminal.paste(pasted)
    terminal.wait_for("pasted line 199")
    assert not figures(terminal.rows)
    terminal.type("\r")
    terminal.wait_for("[1] you said: pasted line 0")
    terminal.settle()
    terminal.enter("next")
    terminal.wait_for("[3] you said: next")
    rows = [row.removeprefix("> ").strip() for row in terminal.rows]
    for n in range(200):
        assert rows.count(f"pasted line {n}") == (2 if n else 1)
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


def test_no_row_is_lost_and_none_comes_twice(terminal: Terminal) -> None:
    terminal.enter("lines 300")
    terminal.wait_for("line number 299")
    terminal.settle()
    numbers = [int(row.rpartition(" ")[2]) for row in terminal.rows if row.startswith("line number")]
    assert numbers == list(range(300))
    terminal.leave()


def test_a_resize_in_mid_answer_loses_no_finished_row(terminal: Terminal) -> None:
    terminal.enter("say " + "\\n\\n".join(f"Paragraph number {n}" for n in range(40)) + "\\n\\nend")
    terminal.wait_for("end")
    terminal.settle()
    terminal.enter("slow 100")
    terminal.wait_for("word5")
    terminal.resize(40, 20)
    terminal.wait_for("word50")
    terminal.resize(100, 30)
    terminal.settle()
    terminal.enter("after")
    terminal.wait_for("[5] you said: after")
    terminal.leave()
    numbers = [row for row in terminal.rows if row.startswith("Paragraph number")]
    assert numbers == [f"Paragraph number {n}" for n in range(40)]


def test_the_toolbar_fits_40_columns(tmp_path: Path) -> None:
    terminal = opened(tmp_path, columns=40, rows=20)
    terminal.enter("hello")
    terminal.wait_for("[1] you said: hello")
    terminal.settle()
    assert terminal.visible[-1] == "scripted · ready · ctx 4/8192 · hit 0%"
    terminal.resize(24, 20)
    terminal.until(lambda: terminal.visible[-1] == "scripted · ready", "a shorter toolbar")
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
    terminal.wait_for("nothing was answered yet")
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


def test_control_sequences_of_a_model_are_shown_not_obeyed(terminal: Terminal) -> None:
    terminal.enter("say before\\x1b[2J\\x1b]0;owned\\x07\\x9b5A after")
    terminal.wait_for("after")
    terminal.settle()
    assert terminal.screen.title == ""
    assert any("before␛[2J␛]0;owned␇" in row for row in terminal.rows)
    assert any(row.startswith("> say before") for row in terminal.rows)
    terminal.leave()


def test_reasoning_is_live_and_then_one_line(terminal: Terminal) -> None:
    terminal.enter("think")
    terminal.wait_for("[1] you said: think")
    terminal.settle()
    assert any(re.match(r"thought \d+\.\d s", row) for row in terminal.rows)
    assert not any("hm 1" in row for row in terminal.rows)
    terminal.leave()


def test_markdown_is_rendered_block_by_block_and_code_has_no_padding(terminal: Terminal) -> None:
    terminal.enter(
        "say # Title\\n\\nSome **bold** text\\n\\n```python\\ndef f():\\n    return 1\\n```\\n\\n- a\\n- b"
    )
    terminal.wait_for(" • b")
    terminal.settle()
    rows = terminal.rows
    start = rows.index("Title")
    assert rows[start : start + 8] == [
        "Title",
        "",
        "Some bold text",
        "",
        "def f():",
        "    return 1",
        "",
        " • a",
    ]
    assert not re.search(rb"return.{0,20} 1(\x1b\[[0-9;]*m)* +", terminal.raw)
    terminal.leave()


def test_markdown_can_be_left_alone(tmp_path: Path) -> None:
    terminal = opened(tmp_path, "--markdown", "never")
    terminal.enter("say # Title\\n\\n**bold**")
    terminal.wait_for("**bold**")
    terminal.settle()
    assert "# Title" in terminal.rows
    terminal.leave()


def test_no_color_leaves_no_colour(tmp_path: Path) -> None:
    terminal = opened(tmp_path, environ={"NO_COLOR": "1"})
    terminal.enter("say # Title\\n\\n```python\\ndef f(): pass\\n```\\n\\nend")
    terminal.wait_for("end")
    terminal.enter("overflow")
    terminal.wait_for("do not fit")
    assert not re.search(rb"\x1b\[(?:\d+;)*(?:3[0-7]|38|4[0-7]|48|9[0-7])[;m]", terminal.raw)
    terminal.type("\x03")
    terminal.leave()


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


def is_stopped(pid: int) -> bool:
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True).stdout.startswith(b"T")


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


@pytest.mark.parametrize("message", ["hello", "lines 60"])
def test_ctrl_l_draws_anew_what_was_there_and_keeps_the_input(terminal: Terminal, message: str) -> None:
    terminal.enter(message)
    terminal.settle()
    terminal.type("half a mess")
    terminal.until(lambda: terminal.visible[-2] == "> half a mess", "the input")
    before, count = terminal.rows, len(terminal.raw)
    terminal.screen.reset()  # as a program does that writes over it
    terminal.type("\x0c")
    terminal.until(lambda: len(terminal.raw) > count and "> half a mess" in terminal.visible, "the screen")
    terminal.read()
    assert terminal.visible[-2:] == before[-2:]
    assert terminal.visible == before[-len(terminal.visible) :]
    assert len(terminal.visible) > min(20, len(before) - 2)
    terminal.type("\x03")
    terminal.leave()


def test_while_an_answer_comes_the_toolbar_says_how_to_stop_it(tmp_path: Path) -> None:
    terminal = opened(tmp_path, columns=30)
    terminal.enter("slow 500")
    terminal.until(lambda: terminal.visible[-1].startswith("answering · Ctrl-C stops"), "the hint")
    terminal.type("\x03")
    terminal.wait_for("stopped")
    terminal.until(lambda: "Ctrl-C" not in terminal.visible[-1], "the hint to go")
    terminal.leave()


def test_in_a_narrow_terminal_what_is_said_is_broken_between_words(tmp_path: Path) -> None:
    terminal = opened(tmp_path, columns=30)
    terminal.enter("/help")
    terminal.wait_for("/compact [N]")
    start = terminal.rows.index("/compact [N]")
    assert terminal.rows[start + 1 : start + 3] == [
        "  let a summary replace all",
        "  but the last N messages (2)",
    ]
    terminal.enter("/hlep")
    terminal.wait_for("! no command is called /hlep:")
    terminal.wait_for("did you mean /help? (// begins")
    terminal.enter("/copy")
    terminal.wait_for("! nothing was answered yet:")
    terminal.wait_for("there is nothing to copy")
    terminal.leave()


def test_a_pasted_tab_is_seen_as_room_and_sent_as_it_is(terminal: Terminal) -> None:
    terminal.paste("if a:\n\tb")
    terminal.until(lambda: "      b" in terminal.visible, "the indented line")
    terminal.type("\r")
    terminal.settle()
    assert "^I" not in "\n".join(terminal.rows)
    terminal.leave()
