"""What whoever comes back to a conversation is shown of it."""

from __future__ import annotations

import re

from kvchat.ui.recap import Recap, shown
from kvchat.ui.tables import Look

EARLY = "> What do bees do all day long?\nThey gather nectar, build their comb and look after the young."
RECAP = Recap(EARLY, "And at night?", "They **rest**.", "(it stopped here; /continue goes on)")


def test_the_early_lines_break_between_words() -> None:
    rows = re.sub(r"\x1b\[[0-9;]*m", "", shown(RECAP, Look(24, color=True))).split("\n")
    assert all(len(row) <= 24 for row in rows[:-1])
    assert " ".join(rows[: rows.index("> And at night?")]) == EARLY.replace("\n", " ")


def test_as_plain_text_nothing_is_cut_and_nothing_styled() -> None:
    assert shown(RECAP, Look(24, plain=True)) == (
        f"{EARLY}\n> And at night?\nThey **rest**.\n(it stopped here; /continue goes on)"
    )


def test_nothing_is_shown_of_a_conversation_without_a_message() -> None:
    assert shown(Recap(), Look(40)) == ""
