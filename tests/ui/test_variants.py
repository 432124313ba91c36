"""The answers that there are to one message, one after the other, and each of them copied."""

import base64
import re
from pathlib import Path

import pytest

from kvchat.chat.session import Session
from kvchat.errors import UsageError
from tests.scripted import ScriptedBackend
from tests.ui.terminal import Terminal


def test_the_variants_of_an_answer_follow_each_other_in_a_ring() -> None:
    session = Session(ScriptedBackend())
    session.ask("one")
    with pytest.raises(UsageError, match="one answer only"):
        session.show_variant(1)
    session.ask("two")
    first = session.tip
    list(session.retry())
    second = session.tip
    list(session.retry())
    third = session.tip
    assert session.show_variant(1) == (1, 3)
    assert session.tip is not None
    assert first is not None
    assert session.tip.id == first.id
    assert session.show_variant(-1) == (3, 3)
    assert session.show_variant(-1) == (2, 3)
    assert second is not None
    assert third is not None
    assert session.tip.id == second.id
    session.ask("three")
    session.undo()
    session.show_variant(1)
    assert session.tip.id == third.id
    assert len(session.branches) == 3, "what followed an answer stays"


def test_nothing_was_answered_yet_so_there_is_no_variant() -> None:
    with pytest.raises(UsageError, match="no answer yet"):
        Session(ScriptedBackend()).show_variant(1)


def test_a_key_goes_to_the_answer_before_and_shows_it(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path).ready()
    terminal.enter("say **one**")
    terminal.settle()
    terminal.enter("/retry")
    terminal.settle()
    terminal.type("\x1bp")
    terminal.wait_for("answer 1 of 2")
    terminal.type("\x1bn")
    terminal.wait_for("answer 2 of 2")
    assert [row for row in terminal.rows if row == "one"] == ["one"] * 4
    terminal.leave()


def copied(terminal: Terminal) -> list[str]:
    found = re.findall(rb"\x1b\]52;c;([A-Za-z0-9+/=]*)\x07", terminal.raw)
    return [base64.b64decode(data).decode() for data in found]


def test_any_answer_can_be_copied_and_the_code_in_it(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path).ready()
    terminal.enter("say first\\n\\n```\\nx = 1\\n```\\n\\n```\\ny = 2\\n```")
    terminal.settle()
    terminal.enter("say second")
    terminal.settle()
    for command in ("/copy", "/copy 2", "/copy 1 code", "/copy 1 code 1", "/copy -2 code 2"):
        count = len(copied(terminal))
        terminal.enter(command)
        terminal.until(lambda count=count: len(copied(terminal)) > count, command)  # type: ignore[misc]
    assert copied(terminal) == ["second", "second", "y = 2\n", "x = 1\n", "y = 2\n"]
    terminal.enter("/copy 2 code")
    terminal.wait_for("! that answer has no blocks of code: /copy without code takes all of it")
    terminal.enter("/copy 3")
    terminal.wait_for("! there is no answer 3: give a number from 1 to 2")
    terminal.leave()
