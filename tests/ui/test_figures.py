"""Numbers as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvchat.ui.figures import age_text, bar, parts, percent_text, seconds_text, size_text, sparkline


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (23.4 * 2**20, "23.4 MiB"),
        (4 * 2**30, "4.00 GiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_sizes_have_three_digits(num_bytes: float, text: str) -> None:
    assert size_text(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2399, "0.24 s"), (9.999, "10 s"), (59.6, "1 min 0 s"), (250, "4 min 10 s"), (11520, "3 h 12 min")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_ages_have_one_unit() -> None:
    assert [age_text(age) for age in (3, 300, 10800, 10**6)] == ["now", "5 min", "3 h", "11 d"]


def test_only_all_of_it_is_100_percent() -> None:
    assert [percent_text(share) for share in (0, 0.29, 0.9999, 1)] == ["0%", "29%", "99%", "100%"]


def test_a_bar_is_filled_to_an_eighth() -> None:
    assert bar(0, 4) == "····"
    assert bar(0.5, 4) == "██··"
    assert bar(0.53, 4) == "██▏·"
    assert bar(7, 4) == "████"


def test_a_sparkline_goes_from_nothing_to_the_highest() -> None:
    assert sparkline([0, 1, 2]) == "▁▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([0.5], highest=1) == "▅"


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6), st.integers(0, 80))
def test_parts_fill_the_width_and_hide_nothing_there_is_room_for(counts: list[int], width: int) -> None:
    cells = parts(counts, width)
    assert sum(cells) == (width if sum(counts) and width else 0)
    assert all(cell >= 0 and (count or not cell) for count, cell in zip(counts, cells, strict=True))
    if width >= 2 * len(counts) and sum(counts):
        assert all(cell for count, cell in zip(counts, cells, strict=True) if count)
