"""The sixty-four hostile texts in a dialogue: wherever they come from, the terminal gets nothing but text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kvchat.chat.session import Session
from kvchat.chat.store import FILE_NAME, Store
from tests.hostile import ALL, HOSTILE, found_in
from tests.scripted import ScriptedBackend
from tests.ui.terminal import Terminal
from tests.ui.test_hostile_answers import assert_is_harmless

UP = "\x1b[A"
OURS = re.compile(r"\x1b\[[?>]?[0-9;]*[@-~]|\x1b[78]|\r")
ESCAPED = "".join(
    char if char.isascii() and char.isprintable() and char != "\\" else f"\\U{ord(char):08x}" for char in ALL
)
"""All texts as the scripted backend decodes them."""


def assert_clean(terminal: Terminal) -> None:
    terminal.read()
    assert_is_harmless(terminal.raw)
    drawn = OURS.sub("", terminal.raw.decode())
    assert not found_in(drawn), ascii(found_in(drawn))
    assert terminal.screen.title == terminal.screen.icon_name == ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A conversation, sessions, prompts and files that are called and say hostile things."""
    (tmp_path / "DATA").mkdir()
    store = Store(tmp_path / "DATA" / FILE_NAME)
    for text in (*HOSTILE, ALL):
        session = Session(ScriptedBackend(), system=text, store=store, model=f"m{text}")
        session.ask(f"quest {text}")
    for text in HOSTILE[:8]:
        session.ask(f"more {text}")
        session.undo(1)
    session.ask(f"last {ALL}")
    store.close()
    shelf = tmp_path / "prompts"
    shelf.mkdir()
    for number, text in enumerate(HOSTILE):
        name = text.replace("/", "_")
        (shelf / f"p{number}{name}.md").write_text(f"---\ndescription: {json.dumps(text)}\n---\n{text}")
    (shelf / "q.md").write_text(f"---\ndescription: {json.dumps(ALL)}\nmodel: {json.dumps(ALL)}\n---\n{ALL}")
    (tmp_path / "all").write_text(ALL)
    return tmp_path


def test_what_sessions_prompts_and_files_say(folder: Path) -> None:
    terminal = Terminal(folder, "-c", columns=120, rows=40).ready()
    terminal.wait_for("> last")
    for command, shown in (
        ("/switch", "branches:"),
        ("/sessions", "sessions:"),
        ("/prompt", "system prompts:"),
    ):
        terminal.enter(command)
        terminal.wait_for(shown)
        for _ in range(70 if command != "/switch" else 8):
            terminal.type(UP)
        terminal.read()
        terminal.type("\x03")
        terminal.until(
            lambda shown=shown: shown not in "\n".join(terminal.visible[-12:]), "the end of the list"
        )
    for command, shown in (
        ("/branches", "shared by"),
        ("/system", "(63v1"),
        ("/prompt q", "it is used from the next message on"),
        (f"!cat {folder / 'all'}", "add these"),
        ("y/cache", "held"),
        ("/cache why", "reused"),
        ("/context", "largest"),
        ("/stats", "answers"),
        (f"/read {folder / 'all'}", "with the next message"),
        ("/resume nobody", "nobody"),
    ):
        terminal.enter(command)
        terminal.wait_for(shown)
    terminal.type("/prompt p\t")
    terminal.read()
    assert_clean(terminal)
    terminal.type("\x03")
    terminal.leave()
    assert_clean(terminal)


def test_what_an_answer_a_notice_and_an_error_say(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, columns=120).ready()
    for verb, shown in (("notice", "[1] you said"), ("refuse", "! "), ("say", "(63v1")):
        terminal.enter(f"{verb} {ESCAPED}")
        terminal.wait_for(shown)
        if verb == "refuse":
            terminal.until(lambda: terminal.visible[-2].endswith("e0101)"), "the message in the input again")
            terminal.type("\x03")
        else:
            terminal.settle()
    assert_clean(terminal)
    terminal.leave()


@pytest.mark.parametrize("flags", [(), ("--plain",)])
def test_what_is_typed_pasted_and_recalled(tmp_path: Path, flags: tuple[str, ...]) -> None:
    texts = [text.replace("\x1b[201~", "") for text in HOSTILE]
    (tmp_path / "DATA").mkdir()
    (tmp_path / "DATA" / "history").write_text(
        "".join(f"\n# x\n+h{text}\n" for text in texts if "\n" not in text)
    )
    terminal = Terminal(tmp_path, *flags, columns=120)
    if flags:
        terminal.wait_for(">")
        terminal.enter(f"say {ESCAPED}")
        terminal.settle()  # while it is busy the kernel would echo what is typed
        terminal.enter("/system " + "".join(char for char in ALL if char.isprintable() or char > "\x9f"))
        terminal.enter("/system")
        terminal.wait_for("from the next message on")
        terminal.type("\x04")
        terminal.end()
        said = terminal.raw.decode().partition("cached")[0]
        assert not found_in(said.replace("\r", "").partition("\n")[2]), ascii(said)
        return
    terminal.ready()
    for _ in texts:
        terminal.type(UP)
    terminal.read()
    terminal.type("\x03")
    terminal.read()
    for text in texts[::6]:
        terminal.paste(f"a{text}b")
        terminal.read()
    terminal.type("\r")
    terminal.settle()
    assert_clean(terminal)
    terminal.leave()
