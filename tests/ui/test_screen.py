"""What a dialogue shows, seen through a terminal emulator. The backend is scripted."""

import re
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
    terminal.wait_for("! nothing has been answered\n")
    terminal.wait_for("there is nothing to copy")
    terminal.leave()


def test_a_pasted_tab_is_seen_as_room_and_sent_as_it_is(terminal: Terminal) -> None:
    terminal.paste("if a:\n\tb")
    terminal.until(lambda: "      b" in terminal.visible, "the indented line")
    terminal.type("\r")
    terminal.settle()
    assert "^I" not in "\n".join(terminal.rows)
    terminal.leave()
