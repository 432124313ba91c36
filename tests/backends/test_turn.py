"""What is said in a conversation can be written, whoever says it."""

from __future__ import annotations

import pytest

from kvchat.backends.base import Role, Turn, well_formed


@pytest.mark.parametrize(
    ("text", "written"),
    [("plain", "plain"), ("a\ud800b", "a\ufffdb"), ("\ude00", "\ufffd"), ("\ud83d\ude00é", "\U0001f600é")],
)
def test_halves_of_characters_become_a_mark(text: str, written: str) -> None:
    assert well_formed(text) == written


def test_what_a_turn_says_is_well_formed() -> None:
    turn = Turn(Role.ASSISTANT, "a\ud800", "\ude00b")
    assert turn == Turn(Role.ASSISTANT, "a\ufffd", "\ufffdb")
