"""What a person sees of work that is done ahead, in a real pseudo-terminal."""

import time
from pathlib import Path

import pytest

from tests.scripted import PREPARE_S
from tests.ui.terminal import Terminal

STRIPS = {"KVCHAT_TEST_TEMPLATE": "reasoning-stripping"}


def test_preparing_is_seen_in_the_toolbar_and_told_with_the_next_answer(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, environ=STRIPS)
    terminal.wait_for("ready")
    terminal.enter("hello")
    terminal.wait_for("preparing 1/2")
    terminal.wait_for("ready")
    terminal.enter("again")
    terminal.wait_for("prepared 2 while idle")
    terminal.enter("/model")
    terminal.wait_for("its chat template drops the reasoning of past answers (reasoning-stripping)")
    terminal.leave()


def prepared(log: Path) -> list[int]:
    """How many turns were prepared, each time."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []


@pytest.mark.parametrize(
    ("move", "num_turns", "plain"),
    [("start", 4, False), ("/undo", 2, False), ("/resume first", 4, True)],
)
def test_a_conversation_that_one_moves_to_is_prepared(
    tmp_path: Path, move: str, num_turns: int, plain: bool
) -> None:
    log = tmp_path / "log"
    flags = ("--plain",) if plain else ()
    environ = {"KVCHAT_TEST_PREPARED": str(log)}
    terminal = Terminal(tmp_path, *flags, environ=environ)
    terminal.wait_for(">")
    for line in ("/rename first", "hello", "again", "/new second", "other"):
        terminal.enter(line)
        if not line.startswith("/"):
            terminal.wait_for(f"you said: {line}")
            terminal.settle()
    if move == "/undo":
        terminal.enter("/resume first")
        terminal.until(lambda: prepared(log) == [4], "the conversation prepared")
    if move == "start":
        terminal.leave()
        terminal = Terminal(tmp_path, *flags, "-r", "first", environ=environ)
    else:
        terminal.enter(move)
    terminal.until(lambda: prepared(log)[-1:] == [num_turns], "the conversation prepared")
    terminal.type("\x15")
    terminal.enter("and on")
    terminal.wait_for("you said: and on")
    terminal.wait_for(f"prepared {num_turns} while idle")
    terminal.leave()


def test_after_a_message_that_failed_the_conversation_is_prepared_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    terminal = Terminal(tmp_path, "-s", "be brief", environ={"KVCHAT_TEST_PREPARED": str(log)}).ready()
    terminal.until(lambda: prepared(log) == [1], "the system prompt prepared")
    terminal.enter("fail")
    terminal.until(lambda: prepared(log) == [1, 1], "the same again")
    terminal.type("\x03")
    terminal.leave()


@pytest.mark.parametrize(("environ", "told"), [(STRIPS, True), ({}, False)])
def test_a_plain_dialogue_prepares_too_but_only_where_something_is_gained(
    tmp_path: Path, environ: dict[str, str], told: bool
) -> None:
    terminal = Terminal(tmp_path, "--plain", environ=environ)
    terminal.wait_for(">")
    terminal.enter("hello")
    terminal.wait_for("you said: hello")
    terminal.settle()
    time.sleep(3 * PREPARE_S)
    terminal.enter("again")
    terminal.wait_for("[3] you said: again")
    terminal.settle()
    assert any("prepared 2 while idle" in row for row in terminal.rows) is told
    terminal.leave()
