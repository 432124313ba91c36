"""Moving through conversations from the dialogue: every command, in a real pseudo-terminal. The backend is scripted."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.terminal import Terminal, figures


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path, columns=120, rows=40).ready()
    yield opened
    opened.child.close(force=True)


def say(terminal: Terminal, *messages: str) -> None:
    for message in messages:
        terminal.enter(message)
        terminal.settle()


def leave(terminal: Terminal) -> None:
    terminal.type("\x05\x15")
    terminal.leave()


def again(terminal: Terminal, folder: Path, *argv: str) -> Terminal:
    leave(terminal)
    return Terminal(folder, *argv, columns=120, rows=40).ready()


def test_retry_edit_and_switch_keep_every_branch(terminal: Terminal) -> None:
    say(terminal, "one", "two", "three")
    terminal.enter("/retry")
    terminal.settle()
    terminal.enter("/edit 2")
    terminal.wait_for("> /edit 2 two")
    terminal.wait_for("tokens stay cached")
    terminal.type(" and a half\r")
    terminal.wait_for("[3] you said: two and a half")
    terminal.settle()
    terminal.enter("/branches")
    terminal.wait_for("1 message shared by 3: one")
    tree = [row for row in terminal.rows if "─ " in row or "shared by" in row]
    assert [row.split(":")[-1].split("(")[0].strip() for row in tree] == [
        "one",
        "two",
        "three",
        "three",
        "two and a half",
    ]
    terminal.enter("/switch " + tree[2].split("─ ")[1].split()[0])
    terminal.wait_for("> three")
    say(terminal, "four")
    terminal.wait_for("[7] you said: four")
    leave(terminal)


def test_undo_puts_the_message_into_the_input(terminal: Terminal) -> None:
    say(terminal, "one", "two", "three")
    terminal.enter("/undo 2")
    terminal.wait_for("the last 2 messages are taken back")
    terminal.until(lambda: "> two" in terminal.visible, "the message")
    terminal.type("!\r")
    terminal.wait_for("[3] you said: two!")
    terminal.enter("/undo 9")
    terminal.wait_for("give a number from 1 to 2")
    terminal.enter("/undo x")
    terminal.wait_for("'x' is not a number")
    leave(terminal)


def test_continue_goes_on_where_ctrl_c_stopped(terminal: Terminal) -> None:
    terminal.enter("slow 60")
    terminal.wait_for("word5")
    terminal.type("\x03")
    terminal.wait_for("stopped by you")
    terminal.enter("/continue")
    terminal.wait_for("word59")
    terminal.settle()
    terminal.enter("/continue")
    terminal.wait_for("the last answer is complete")
    leave(terminal)


def test_a_fork_and_the_way_back(terminal: Terminal) -> None:
    say(terminal, "one")
    terminal.enter("/rename trunk")
    terminal.enter("/fork side")
    terminal.wait_for("/switch trunk goes back")
    say(terminal, "two")
    terminal.enter("/switch trunk")
    say(terminal, "zwei")
    terminal.wait_for("[3] you said: zwei")
    terminal.type("/switch si\t")
    terminal.until(lambda: "> /switch side" in terminal.visible, "the name")
    terminal.type("\r")
    say(terminal, "three")
    terminal.wait_for("[5] you said: three")
    leave(terminal)


def test_sessions_are_chosen_from_a_list_by_key_and_by_number(terminal: Terminal, tmp_path: Path) -> None:
    say(terminal, "apples")
    terminal.enter("/new pears")
    say(terminal, "about pears")
    terminal.enter("/sessions")
    terminal.wait_for("1 turn · 4 tokens · apples")
    assert "→ 1." in "\n".join(terminal.visible)
    terminal.type("2\r")
    terminal.wait_for("[1] you said: apples")
    say(terminal, "more apples")
    terminal.wait_for("[3] you said: more apples")
    terminal = again(terminal, tmp_path, "-r")
    terminal.wait_for("sessions: (Enter")
    terminal.wait_for("(Enter continues it")
    terminal.type("\x1b[B\r")
    terminal.wait_for("you said: about pears")
    leave(terminal)


def test_going_on_shows_the_last_turns(terminal: Terminal, tmp_path: Path) -> None:
    say(terminal, "one", "two", "three", "four")
    terminal = again(terminal, tmp_path, "-c")
    terminal.wait_for("(1 earlier message)")
    terminal.wait_for("> four")
    rows = terminal.rows
    assert "> one" not in rows
    assert rows.index("> two") < rows.index("[3] you said: two") < rows.index("> three")
    assert b"\x1b[2m(1 earlier" in terminal.raw
    leave(terminal)
    terminal = Terminal(tmp_path, "--plain", "-c")
    terminal.wait_for("[7] you said: four")
    terminal.wait_for("\n>")
    terminal.leave()


def test_compact_and_drop_shorten_what_is_told_and_expand_goes_back(terminal: Terminal) -> None:
    say(terminal, "one", "two", "three", "four")
    terminal.enter("/compact")
    terminal.wait_for("for the summary")
    terminal.settle()
    terminal.enter("/drop 1")
    terminal.wait_for("the oldest message is left out")
    terminal.wait_for("tokens stay cached")
    say(terminal, "five")
    terminal.wait_for("[5] you said: five")
    terminal.enter("/branches")
    terminal.wait_for("5 messages: one")
    terminal.enter("/expand")
    terminal.wait_for("the model is told the whole conversation from the summary before on")
    say(terminal, "six")
    terminal.wait_for("[9] you said: six")
    leave(terminal)


def test_a_message_is_pinned_and_unpinned(terminal: Terminal) -> None:
    say(terminal, "one", "two")
    terminal.enter("/pin 1")
    terminal.wait_for("message 1 and what was answered stay word for word")
    terminal.enter("/unpin")
    terminal.wait_for("1 · one")
    terminal.type("\r")
    terminal.wait_for("no message is pinned now")
    terminal.enter("/unpin")
    terminal.wait_for("/pin pins the last one")
    leave(terminal)


def test_the_choice_of_what_to_do_with_a_full_context_is_kept(terminal: Terminal, tmp_path: Path) -> None:
    terminal.enter("/set when_full")
    terminal.wait_for("when_full = ask")
    terminal.enter("/set when_full never")
    terminal.wait_for("is not one of auto, ask, drop, off")
    terminal.enter("/set when_full auto --save")
    terminal.wait_for("when_full saved in")
    leave(terminal)
    terminal = again(terminal, tmp_path)
    terminal.enter("/set when_full")
    terminal.wait_for("when_full = auto")
    assert "CONFIG:2" in "".join(row.strip() for row in terminal.rows)
    leave(terminal)


def test_export_writes_a_file_that_only_its_owner_reads_and_never_over_another(
    terminal: Terminal, tmp_path: Path
) -> None:
    say(terminal, "hello there")
    terminal.enter(f"/export json {tmp_path}/talk.json")
    terminal.wait_for("written to")
    path = tmp_path / "talk.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [message["content"] for message in json.loads(path.read_text())["messages"]] == [
        "hello there",
        "[1] you said: hello there",
    ]
    terminal.enter(f"/export {tmp_path}/talk.json")
    terminal.wait_for("already exists")
    terminal.enter("/export pdf")
    terminal.wait_for("no format is called 'pdf'")
    leave(terminal)


def test_files_go_into_the_message(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("fourteen swans\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\x00\xff")
    say(terminal, f"say what @{tmp_path}/notes.txt, says")
    terminal.enter("/copy > " + str(tmp_path / "said.txt"))
    terminal.wait_for("written to")
    said = (tmp_path / "said.txt").read_text()
    assert said.endswith(f"notes.txt, says\n\n## {tmp_path}/notes.txt\n\n```\nfourteen swans\n```\n")
    terminal.enter(f"what is @{tmp_path}/picture.png")
    terminal.wait_for("is not a text file")
    terminal.type("\x05\x15")
    terminal.type(f"/read {tmp_path}/no\t\r")
    terminal.wait_for("with the next message:")
    say(terminal, "and this?")
    terminal.wait_for("and this?")
    terminal.enter(f"/read {tmp_path}/nothing")
    terminal.wait_for("No such file")
    leave(terminal)


def test_a_saved_prompt_is_completed_previewed_and_put_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "own" / "prompts"
    folder.mkdir(parents=True)
    (folder / "pirate.md").write_text(
        "---\ndescription: Talks like a pirate\noptions: {temperature: 0.3}\nvars: {sea:}\n---\n"
        "You sail the {{ sea }}.\n"
    )
    terminal = Terminal(
        tmp_path, columns=120, rows=40, environ={"KVCHAT_CONFIG": str(tmp_path / "own/config.toml")}
    )
    terminal.ready()
    terminal.type("/prompt pir\t")
    terminal.until(lambda: any("> /prompt pirate" in row for row in terminal.visible), "the name")
    terminal.type("\r")
    terminal.wait_for("pirate needs sea: say /prompt pirate sea=VALUE")
    terminal.enter("/prompt pirate sea='Red Sea'")
    terminal.wait_for("You sail the Red Sea.")
    terminal.wait_for("it is used from the next message on")
    terminal.enter("/set temperature")
    terminal.wait_for("temperature = 0.3")
    say(terminal, "ahoy")
    terminal.wait_for("[2] you said: ahoy")
    terminal.enter("/prompt")
    terminal.wait_for("system prompts: (Enter")
    terminal.type("\x1b")
    terminal.until(lambda: "system prompts:" not in "\n".join(terminal.visible), "the list to go")
    terminal.enter("/prompt nobody")
    terminal.wait_for("no prompt is called 'nobody'")
    leave(terminal)


def test_an_unknown_model_leaves_the_old_one_in_place(terminal: Terminal) -> None:
    say(terminal, "one")
    terminal.enter("/model nobody")
    terminal.wait_for("no model is called 'nobody'")
    say(terminal, "two")
    terminal.enter("/model other")
    terminal.wait_for("other answers from now on")
    say(terminal, "three")
    terminal.wait_for("[5] you said: three")
    terminal.enter("/model")
    terminal.wait_for("other answers; /model NAME changes that")
    terminal.wait_for("models on this disk:")
    terminal.type("\x1b")
    terminal.until(lambda: "→" not in "\n".join(terminal.visible), "the end of the list")
    leave(terminal)


def test_ctrl_c_gives_up_loading_another_model(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, columns=120, rows=40, environ={"KVCHAT_TEST_LOAD_S": "3"}).ready()
    say(terminal, "one")
    terminal.enter("/model other")
    terminal.until(lambda: any(row.startswith("loading ") for row in terminal.visible), "its loading")
    terminal.type("\x03")
    terminal.wait_for("! loading other was cancelled: smollm2-135m answers as before")
    say(terminal, "two")
    terminal.wait_for("[3] you said: two")
    terminal.enter("/model")
    terminal.wait_for("smollm2-135m answers")
    leave(terminal)


def test_room_is_offered_before_the_context_overflows(terminal: Terminal) -> None:
    say(terminal, "one", "two", "three")
    terminal.enter("overflow")
    terminal.wait_for("9000 tokens do not fit")
    terminal.wait_for("(Enter makes room, Esc leaves)")
    shown = "\n".join(terminal.visible)
    assert "/compact · summarise all but the last 2" in shown
    assert "/drop 2 · leave out the oldest" in shown
    assert "tokens stay cached" in shown
    assert "/set when_full auto --save · from now on the oldest messages are summarised" in shown
    terminal.type("2\r")
    terminal.wait_for("the oldest 2 messages are left out")
    terminal.until(lambda: "> overflow" in terminal.visible, "the message in the input")
    leave(terminal)


def test_a_nearly_full_context_is_said_once(terminal: Terminal) -> None:
    say(terminal, "one", "two")
    terminal.paste("w " * 7200)
    terminal.type("\r")
    terminal.settle()
    terminal.wait_for("full; to make room:")
    say(terminal, "three")
    assert len(figures(terminal.rows)) == 4
    assert sum("to make room" in row for row in terminal.rows) == 1
    leave(terminal)


def test_plain_has_the_moves_too(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "--plain")
    terminal.wait_for(">")
    say(terminal, "one", "two")
    terminal.enter("/retry")
    terminal.settle()
    terminal.enter("/switch")
    terminal.wait_for("number, or nothing:")
    terminal.enter("1")
    terminal.wait_for("tokens stay cached")
    terminal.leave()
