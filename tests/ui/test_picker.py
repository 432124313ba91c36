"""A list narrows as one types, pages, counts, and takes the row that is meant."""

import pytest

from kvchat.ui.commands import COMMANDS
from kvchat.ui.menu import NUM_ROWS as MENU_ROWS
from kvchat.ui.menu import menu_rows
from kvchat.ui.picker import NUM_ROWS, Picker

LABELS = [f"session {n} about {'eggs' if n % 10 == 3 else 'cats'}" for n in range(40)]


def picker(taken: list[int]) -> Picker:
    return Picker("sessions:", LABELS, taken.append, at=0)


def typed(shown: Picker, text: str) -> None:
    for char in text:
        shown.type(char)


def test_what_is_typed_narrows_the_list_and_the_row_that_is_left_is_taken() -> None:
    taken: list[int] = []
    shown = picker(taken)
    typed(shown, "eggs")
    rows = shown.rows(80)
    assert rows[0] == "sessions: 4 of 40 with 'eggs'"
    assert rows[1:] == [
        "→ 1. session 3 about eggs",
        *(f"  {place}. session {n} about eggs" for place, n in ((2, 13), (3, 23), (4, 33))),
    ]
    shown.move(1)
    shown.take()
    assert taken == [13]


def test_a_filter_can_be_taken_back_and_one_that_matches_nothing_takes_nothing() -> None:
    taken: list[int] = []
    shown = picker(taken)
    typed(shown, "zebra")
    assert shown.rows(80)[1:] == ["  nothing matches"]
    shown.take()
    assert not taken
    for _ in "zebra":
        shown.erase()
    assert shown.rows(80)[0] == "sessions: 40, type to filter"


def test_digits_go_to_a_row_until_something_else_is_typed() -> None:
    taken: list[int] = []
    shown = picker(taken)
    typed(shown, "12")
    shown.take()
    shown = picker(taken)
    typed(shown, "session 12")
    shown.take()
    assert taken == [11, 12]


def test_pages_move_by_what_is_shown_and_stop_at_the_ends() -> None:
    shown = picker([])
    for _ in range(2):
        shown.page(1)
    assert shown.at == 2 * NUM_ROWS
    for _ in range(9):
        shown.page(-1)
    assert shown.at == 0


@pytest.mark.parametrize("columns", [20, 40, 100])
def test_the_menu_shows_commands_with_what_they_do_and_filters(columns: int) -> None:
    rows = menu_rows("/", columns)
    assert len(rows) == MENU_ROWS
    assert all(len(row) < columns for row in rows)
    (row,) = menu_rows("/retr", 200)
    assert row.strip().startswith("/retry")
    assert next(command.help for command in COMMANDS if command.name == "/retry") in row
    assert any("/copy" in row for row in menu_rows("/block", 100)), "words of a description find it too"
    assert menu_rows("/retry now", 100) == menu_rows("hello", 100) == menu_rows("//", 100) == []
