"""Several conversations at one model, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvchat.backends.base import Answer, Done, Keeping, Options, Prefilling, Text
from kvchat.backends.local import LocalBackend
from kvchat.backends.resident.seats import Seat, SharedModel
from kvchat.config import Config
from tests.backends.resident.sharing import GREEDY, user, wait_until

LONG = "the quick brown fox jumps over the lazy dog "


@pytest.fixture
def shared(make_config: Callable[..., Config]) -> Iterator[SharedModel]:
    model = SharedModel(make_config(cache__disk="0"))
    yield model
    model.close()


def said(seat: LocalBackend, text: str, keeping: Keeping | None = None, options: Options = GREEDY) -> Answer:
    *_, last = seat.answer([user(text)], options, keeping)
    assert isinstance(last, Done)
    return last.answer


def test_each_seat_has_its_own_live_conversation(shared: SharedModel) -> None:
    first, second = shared.seat(), shared.seat()
    said(first, LONG)
    assert said(second, "something else").cache.live == 0
    again = said(first, LONG)
    assert again.cache.live == again.usage.prompt_tokens - 1


def test_the_first_answer_pays_for_nothing_but_itself_and_finds_nothing_of_the_rehearsal(
    shared: SharedModel,
) -> None:
    shared.start()
    seat = shared.seat()
    assert wait_until(lambda: seat.status().phase.value == "ready")
    answer = said(seat, "Hello")
    assert answer.usage.cached_tokens == 0
    assert answer.cache.was == ""


def test_what_was_unused_for_longest_is_let_go_of_and_passing_questions_before_terminals(
    make_config: Callable[..., Config],
) -> None:
    model = SharedModel(make_config(cache__mode="rw"), live_bytes=1)
    terminal, other, passing = model.seat(), model.seat(), model.seat(is_passing=True)
    for seat in (terminal, passing, other):
        said(seat, LONG)
    assert [seat.live_bytes > 0 for seat in (terminal, other, passing)] == [False, True, False]
    enough = SharedModel(model.config, live_bytes=other.live_bytes * 5 // 2)
    seats = [enough.seat(is_passing=number == 1) for number in range(4)]
    for seat in seats[:3]:
        said(seat, LONG)
    said(seats[3], LONG)
    assert [seat.live_bytes > 0 for seat in seats] == [True, False, True, True]
    enough.close()
    model.close()


def test_a_seat_that_lost_its_live_kv_is_served_from_blocks(make_config: Callable[..., Config]) -> None:
    model = SharedModel(make_config(), live_bytes=1)
    first, second = model.seat(), model.seat()
    before = said(first, LONG * 3)
    said(second, "something else")
    assert first.live_bytes == 0
    again = said(first, LONG * 3)
    assert again.completion == before.completion
    assert again.cache.tiers.get("ram", 0) == again.usage.prompt_tokens // 16 * 16
    model.close()


def test_what_is_not_saved_leaves_nothing_once_its_client_is_gone(shared: SharedModel) -> None:
    private = shared.seat()
    said(private, LONG, Keeping(saves=False))
    assert private.live_bytes > 0
    private.close()
    assert shared.live_bytes == 0
    assert said(shared.seat(), LONG).usage.cached_tokens == 0


def test_a_seat_that_closes_ends_its_own_work_alone(
    make_config: Callable[..., Config], long_path: Path
) -> None:
    model = SharedModel(make_config(model__name=str(long_path)))
    leaving, staying = model.seat(), model.seat()
    endless = leaving.answer([user("hello")], Options(max_tokens=20_000, repeat_stop=False))
    assert any(isinstance(event, Text) for event in (next(endless) for _ in range(5)))
    leaving.close()
    assert len(said(staying, "hello").completion) == 8
    model.close()


def test_computing_ahead_for_one_does_not_end_it_for_another_and_gives_way_to_an_answer(
    make_config: Callable[..., Config], long_path: Path
) -> None:
    model = SharedModel(make_config(model__name=str(long_path)))
    first, second = model.seat(), model.seat()
    history = [user(LONG * 400)]
    ahead = first.prepare(history, Options())
    assert isinstance(next(ahead), Prefilling)
    behind = second.prepare(history, Options())
    assert len(said(second, "hello").completion) == 8
    *_, last = [None, *ahead]
    assert last is None or (isinstance(last, Prefilling) and last.done < last.total)
    behind.close()
    model.close()


def test_memory_that_can_be_had_again_is_given_back(shared: SharedModel) -> None:
    seat = shared.seat()
    said(seat, LONG * 3)
    shared.shed()
    assert shared.live_bytes == 0
    assert said(seat, LONG * 3).usage.cached_tokens == 0


def test_a_warning_is_told_at_every_seat_once(shared: SharedModel) -> None:
    early = shared.seat()
    shared._warn("the disk is full")
    late = shared.seat()
    for seat in (early, late):
        assert isinstance(seat, Seat)
        told = [event for event in seat.answer([user("hello")], GREEDY) if not isinstance(event, Text)]
        assert any(getattr(event, "message", "") == "the disk is full" for event in told)


@pytest.mark.parametrize("is_passing", [True, False])
def test_what_passing_requests_left_goes_before_what_a_terminal_may_come_back_to(
    make_config: Callable[..., Config], is_passing: bool
) -> None:
    model = SharedModel(make_config(cache__disk="0", cache__ram="300KB"), live_bytes=0)
    terminal = model.seat()
    before = said(terminal, LONG * 8)
    for number in range(16):
        other = model.seat(is_passing=is_passing)
        said(other, f"{number} {LONG * 8}")
        other.close()
    again = said(terminal, LONG * 8)
    assert again.cache.live == 0 and again.completion == before.completion
    is_held = again.usage.cached_tokens >= again.usage.prompt_tokens - 32
    assert is_held is is_passing, "there is no room for all of them"
    model.close()


def test_a_terminal_that_goes_on_from_what_passed_makes_it_its_own(
    make_config: Callable[..., Config],
) -> None:
    model = SharedModel(make_config(cache__disk="0"), live_bytes=0)
    said(model.seat(is_passing=True), LONG * 3)
    found = said(model.seat(), LONG * 3)
    assert found.usage.cached_tokens == found.usage.prompt_tokens // 16 * 16
    model.close()
