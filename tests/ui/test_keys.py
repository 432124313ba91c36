"""Every key, driven through a real pseudo-terminal."""

import base64
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.terminal import Terminal

UP, DOWN, ESCAPE = "\x1b[A", "\x1b[B", "\x1b"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path).ready()
    yield opened
    opened.child.close(force=True)


def input_is(terminal: Terminal, text: str) -> None:
    terminal.until(lambda: f"> {text}".rstrip() in terminal.visible[-3:], f"the input {text!r}")


@pytest.mark.parametrize("key", ["\x1b[13;2u", "\x1b[27;2;13~", "\x1b[13;5u", "\x1b[27;3;13~"])
def test_shift_enter_makes_a_new_line_where_the_terminal_reports_it(terminal: Terminal, key: str) -> None:
    terminal.enter(f"first{key}second")
    terminal.wait_for("[1] you said: first")
    terminal.settle()
    assert terminal.rows.count("second") == 1
    terminal.leave()


@pytest.mark.parametrize(("key", "variable"), [("\x07", "VISUAL"), ("\x18\x05", "EDITOR")])
def test_a_message_can_be_written_in_the_editor(tmp_path: Path, key: str, variable: str) -> None:
    editor = tmp_path / "editor.py"
    editor.write_text("import sys; p = sys.argv[1]; t = open(p).read(); open(p, 'w').write(t + ' edited\\n')")
    environ = {"VISUAL": "", "EDITOR": "", variable: f"{sys.executable} {editor}"}
    terminal = Terminal(tmp_path, environ=environ).ready()
    terminal.type(f"typed{key}")
    input_is(terminal, "typed edited")
    terminal.type("\r")
    terminal.wait_for("[1] you said: typed edited")
    terminal.leave()


@pytest.mark.parametrize(
    ("editor", "line"), [("/nowhere/ed", "can't run the editor"), ("false", "exited with code 1")]
)
def test_an_editor_that_fails_leaves_the_text(tmp_path: Path, editor: str, line: str) -> None:
    terminal = Terminal(tmp_path, environ={"VISUAL": editor}).ready()
    terminal.type("typed\x07")
    terminal.wait_for(line)
    input_is(terminal, "typed")
    terminal.type("\x03")
    terminal.leave()


def test_an_answer_that_goes_on_while_the_editor_is_open_is_printed_behind_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    editor = tmp_path / "editor.py"
    editor.write_text(
        f"import os, time\nprint('EDITOR IS OPEN')\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.02)"
    )
    terminal = Terminal(tmp_path, environ={"VISUAL": f"{sys.executable} {editor}"}).ready()
    terminal.enter("lines 600")
    terminal.wait_for("line number 3")
    terminal.type("\x07")
    terminal.wait_for("EDITOR IS OPEN")
    seen = len(terminal.raw)
    for _ in range(30):
        terminal.read()
    assert b"line number" not in terminal.raw[seen:]
    gate.touch()
    terminal.ready()
    terminal.wait_for("line number 599")
    terminal.settle()
    numbers = [int(row.rpartition(" ")[2]) for row in terminal.rows if row.startswith("line number")]
    assert numbers == list(range(600))
    terminal.leave()


def test_ctrl_r_searches_earlier_messages(terminal: Terminal) -> None:
    for message in ("the first apple", "the second pear", "the third plum"):
        terminal.enter(message)
        terminal.settle()
    terminal.type("\x12apple")
    terminal.wait_for("search: apple")
    input_is(terminal, "the first apple")
    terminal.type("\r")
    terminal.until(lambda: "search:" not in "\n".join(terminal.visible), "the end of the search")
    terminal.type("\x05!\r")
    terminal.wait_for("[7] you said: the first apple!")
    terminal.type("\x12pear")
    input_is(terminal, "the second pear")
    terminal.type("\x03")
    input_is(terminal, "")
    terminal.leave()


def test_up_goes_to_the_line_above_and_from_the_first_one_to_earlier_messages(terminal: Terminal) -> None:
    terminal.enter("earlier")
    terminal.settle()
    terminal.type("one\ntwo")
    terminal.type(UP + "X")
    terminal.wait_for("> oneX")
    terminal.type(UP)
    input_is(terminal, "earlier")
    terminal.type("\x03")
    terminal.leave()


def test_tab_completes_arguments_and_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "deep.txt").touch()
    terminal = Terminal(tmp_path).ready()
    terminal.type("/set temp\t")
    input_is(terminal, "/set temperature")
    terminal.type("0.5\r")
    terminal.wait_for("temperature = 0.5")
    terminal.type("/set top\t")
    terminal.wait_for("top_k  top_p")
    terminal.type("\x03/copy c\t")
    input_is(terminal, "/copy code")
    terminal.type(f"\x03see @{tmp_path}/no\t")
    terminal.wait_for("notes.txt")
    terminal.type(f"\x03see @{tmp_path}/fol\t")
    terminal.wait_for("folder/")
    terminal.type("de\t")
    terminal.wait_for("folder/deep.txt")
    terminal.type("\x03")
    terminal.leave()


def test_escape_twice_goes_back_to_a_message_and_what_was_said_stays_a_branch(terminal: Terminal) -> None:
    for message in ("apple", "pear", "plum"):
        terminal.enter(message)
        terminal.settle()
    terminal.type(ESCAPE + ESCAPE)
    terminal.wait_for("→ 3. plum")
    terminal.type(UP)
    terminal.wait_for("→ 2. pear")
    terminal.type(DOWN + UP + "\r")
    terminal.wait_for("2 messages are taken back")
    input_is(terminal, "pear")
    terminal.type(" tree\r")
    terminal.wait_for("[3] you said: pear tree")
    terminal.settle()
    terminal.leave()


@pytest.mark.parametrize("key", [ESCAPE, "\x03"])
def test_the_list_can_be_left(terminal: Terminal, key: str) -> None:
    terminal.enter("apple")
    terminal.settle()
    terminal.type("half" + ESCAPE + ESCAPE)
    terminal.wait_for("→ 1. apple")
    terminal.type(key)
    terminal.until(lambda: "→" not in "\n".join(terminal.visible), "the end of the list")
    terminal.type(" done\r")
    terminal.wait_for("[3] you said: half done")
    terminal.leave()


def test_there_is_nothing_to_go_back_to_at_first(terminal: Terminal) -> None:
    terminal.type(ESCAPE + ESCAPE)
    terminal.wait_for("there is no message to go back to")
    terminal.leave()


def test_a_shell_commands_output_goes_along_when_it_is_wanted(terminal: Terminal) -> None:
    terminal.enter("!echo first; echo second >&2; exit 3")
    terminal.wait_for("add these 2 lines to the next message? y/n")
    terminal.wait_for("exit code 3")
    terminal.type("y")
    terminal.wait_for("with the next message: output of echo first")
    terminal.enter("explain")
    terminal.wait_for("[1] you said: explain")
    terminal.settle()
    terminal.leave()
    rows = "\n".join(terminal.rows).partition("[1] you said")[2]
    assert re.search(r"Output of echo first; echo second >&2; exit 3:\n\nfirst\nsecond\n", rows)


@pytest.mark.parametrize("no", ["n", "\r", ESCAPE, "\x03"])
def test_a_shell_commands_output_stays_out_when_it_is_not(terminal: Terminal, no: str) -> None:
    terminal.enter("!echo first")
    terminal.wait_for("y/n")
    terminal.type(no)
    terminal.until(lambda: "y/n" not in "\n".join(terminal.visible), "the end of the question")
    terminal.enter("go on")
    terminal.wait_for("[1] you said: go on")
    terminal.settle()
    assert terminal.rows.count("first") == 1
    terminal.leave()


def test_who_types_on_has_answered_no(terminal: Terminal) -> None:
    terminal.enter("!echo first")
    terminal.wait_for("y/n")
    terminal.enter("go on")
    terminal.wait_for("[1] you said: go on")
    terminal.leave()


def test_a_shell_command_can_be_stopped_and_its_output_is_harmless(terminal: Terminal) -> None:
    terminal.enter("!printf 'a\\033]0;owned\\007'; sleep 60")
    terminal.wait_for("> !printf")
    terminal.type("\x03")
    terminal.wait_for("the command was stopped")
    terminal.wait_for("a␛]0;owned␇")
    assert terminal.screen.title == ""
    terminal.type("n")
    terminal.leave()


def test_an_exclamation_mark_before_a_blank_is_meant(terminal: Terminal) -> None:
    terminal.enter("! really")
    terminal.wait_for("[1] you said: ! really")
    terminal.leave()


def test_ctrl_o_shows_the_last_thought(terminal: Terminal) -> None:
    terminal.type("\x0f")
    terminal.wait_for("the last answer came without reasoning")
    terminal.enter("think")
    terminal.settle()
    assert any(re.fullmatch(r"thought \d+\.\d s, 3 tokens", row) for row in terminal.rows)
    assert "hm 0 hm 1 hm 2" not in terminal.rows
    terminal.type("\x0f")
    terminal.wait_for("hm 0 hm 1 hm 2")
    terminal.leave()


def test_vi_mode_by_setting(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, environ={"KVCHAT_UI_VI": "1"}).ready()
    terminal.enter("said before")
    terminal.settle()
    terminal.type("wrong word" + ESCAPE)
    terminal.read()
    terminal.type("bcwright")
    input_is(terminal, "wrong right")
    terminal.type("\r")
    terminal.wait_for("[3] you said: wrong right")
    terminal.settle()
    terminal.enter("slow 500")
    terminal.wait_for("word5")
    terminal.type("\x03")
    terminal.wait_for("stopped by you")
    terminal.type(ESCAPE)
    for _ in range(10):
        terminal.read()
    terminal.type(ESCAPE + ESCAPE)
    terminal.wait_for("→ 3. slow 500")
    terminal.type("\r")
    terminal.wait_for("a message is taken back")
    terminal.type("\x03")
    terminal.leave()


def test_broken_utf_8_that_is_typed_ends_nothing(terminal: Terminal) -> None:
    terminal.child.send(b"\x1b[200~bad \xff\xfe bytes\x1b[201~")
    terminal.wait_for("bytes")
    terminal.type("\r")
    terminal.wait_for("[1] you said: bad ?? bytes")
    terminal.leave()


def test_copy_puts_an_answer_or_its_code_on_the_clipboard_or_in_a_file(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.enter("/copy")
    terminal.wait_for("nothing has been answered yet")
    terminal.enter("say Look:\\n\\n```python\\nx = 1\\n```\\n\\n- a\\n\\n```\\ny\\n```")
    terminal.settle()
    terminal.enter("/copy code 1")
    terminal.wait_for("1 line went to the terminal's clipboard")
    assert b"\x1b]52;c;" + base64.b64encode(b"x = 1\n") + b"\x07" in terminal.raw
    terminal.enter("/copy")
    whole = b"Look:\n\n```python\nx = 1\n```\n\n- a\n\n```\ny\n```"
    terminal.until(lambda: base64.b64encode(whole) in terminal.raw, "the whole answer")
    terminal.enter("/copy code 3")
    terminal.wait_for("that answer has 2 blocks of code")
    path = tmp_path / "copied"
    terminal.enter(f"/copy code > {path}")
    terminal.wait_for("written to")
    assert path.read_text() == "y\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    terminal.enter(f"/copy > {path}")
    terminal.until(lambda: "already exists" in " ".join(map(str.strip, terminal.rows)), "the refusal")
    terminal.leave()
