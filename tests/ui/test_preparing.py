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
