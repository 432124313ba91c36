"""The input takes pastes and lines of any length, and shows nothing that hides or gives orders."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text.utils import fragment_list_to_text
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import BufferControl
from prompt_toolkit.layout.processors import Transformation, TransformationInput

from kvchat.ui.entry import MAX_CHARACTERS, AroundCursor, _Parser
from tests.hostile import HOSTILE, found_in
from tests.ui.terminal import Terminal

END = "\x1b[201~"


def shown(text: str, at: int) -> Transformation:
    """A line as the input shows it with the cursor at a place."""
    document = Document(text, at)
    asked = TransformationInput(
        BufferControl(Buffer(document=document)), document, 0, lambda place: place, [("", text)], 80, 20
    )
    return AroundCursor().apply_transformation(asked)


@pytest.mark.parametrize("at", [0, 1, 1499, 1500, 200_000, 399_999, 400_000])
def test_of_a_long_line_only_what_is_around_the_cursor_is_drawn(at: int) -> None:
    text = "".join(chr(0x4E00 + number % 20_000) for number in range(400_000))
    drawn = shown(text, at)
    line = fragment_list_to_text(drawn.fragments)
    assert len(line) < 6000
    place = drawn.source_to_display(at)
    assert 0 <= place <= len(line)
    assert drawn.display_to_source(place) == at
    if at < len(text):
        assert line[place] == text[at]
    assert fragment_list_to_text(shown(text, min(at + 1, len(text))).fragments).strip("…") in text


def test_a_line_that_is_not_long_is_drawn_whole() -> None:
    assert fragment_list_to_text(shown("word " * 400, 0).fragments) == "word " * 400


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_each_character_of_the_input_is_seen(text: str) -> None:
    line = fragment_list_to_text(shown(f"a{text}b", 0).fragments)
    assert len(line) == len(text) + 2
    assert not found_in(line)


@pytest.mark.parametrize("step", [1, 3, 5, 4095])
def test_a_paste_arrives_whole_however_it_is_cut(step: int) -> None:
    keys: list[KeyPress] = []
    refused: list[bool] = []
    parser = _Parser(keys.append, lambda: refused.append(True))
    pasted = "one\r\ntwo \x1b[31m\x1b[201 日本" * 20
    sent = f"a\x1b[200~{pasted}{END}b\x1b[200~{END}"
    for start in range(0, len(sent), step):
        parser.feed(sent[start : start + step])
    assert [(key.key, key.data) for key in keys] == [
        ("a", "a"),
        (Keys.BracketedPaste, pasted),
        ("b", "b"),
        (Keys.BracketedPaste, ""),
    ]
    assert not refused


def test_of_a_paste_that_is_too_long_nothing_is_taken_and_what_follows_is() -> None:
    keys: list[KeyPress] = []
    refused: list[bool] = []
    parser = _Parser(keys.append, lambda: refused.append(True))
    parser.feed("\x1b[200~")
    for _ in range(MAX_CHARACTERS // 4096 + 2):
        parser.feed("x" * 4096)
    assert refused == [True]
    parser.feed(f"{END}y\x1b[200~short{END}")
    assert [(key.key, key.data) for key in keys] == [
        (Keys.BracketedPaste, ""),
        ("y", "y"),
        (Keys.BracketedPaste, "short"),
    ]


def test_a_paste_of_ten_megabytes_is_refused_and_the_dialogue_goes_on(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path).ready()
    terminal.type("kept ")
    data = f"\x1b[200~{'word ' * 2_000_000}{END}".encode()

    def feed() -> None:
        at = 0
        while at < len(data):
            at += os.write(terminal.child.child_fd, data[at : at + 65536])

    feeding = threading.Thread(target=feed, daemon=True)
    feeding.start()
    terminal.wait_for("is not taken")
    feeding.join()
    terminal.enter("and sent")
    terminal.wait_for("[1] you said: kept and sent")
    terminal.settle()
    terminal.leave()
