from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from kvchat.engine.turns import Turns


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans())))
def test_nobody_waits_longer_than_one_task_of_each_other_owner(given: list[tuple[int, bool]]) -> None:
    turns: Turns[tuple[int, int, bool]] = Turns()
    for number, (owner, is_last) in enumerate(given):
        turns.put((owner, number, is_last), owner, is_last=is_last)
    taken = []
    while turns.is_waiting:
        task = turns.next()
        assert task is not None
        taken.append(task)
    assert sorted(number for _, number, _ in taken) == list(range(len(given)))
    assert [is_last for *_, is_last in taken] == sorted(is_last for *_, is_last in taken)
    for owner in range(4):
        for kind in (False, True):
            mine = [number for who, number, is_last in taken if (who, is_last) == (owner, kind)]
            assert mine == sorted(mine)
    first = [owner for owner, _, is_last in taken if not is_last]
    owners = len(set(first))
    assert len(set(first[:owners])) == owners  # everybody's first comes before anybody's second


def test_one_who_comes_late_goes_before_the_second_task_of_others() -> None:
    turns: Turns[str] = Turns()
    turns.put("a1", "a")
    turns.put("a2", "a")
    assert turns.next() == "a1"
    turns.put("b1", "b")
    turns.put("a3", "a")
    assert [turns.next(), turns.next(), turns.next()] == ["a2", "b1", "a3"]


def test_a_task_can_be_taken_out_of_turn_where_nothing_of_its_owner_comes_before() -> None:
    turns: Turns[str] = Turns()
    turns.put("work", "a")
    turns.put("look behind work", "a")
    assert turns.first(lambda task: task.startswith("look")) is None
    turns.put("look", "b")
    assert turns.first(lambda task: task.startswith("look")) == "look"
    assert turns.next() == "work"


def test_the_end_is_told_to_whoever_waits() -> None:
    turns: Turns[str] = Turns()
    seen: list[str | None] = []
    waiting = threading.Thread(target=lambda: seen.append(turns.next()))
    waiting.start()
    turns.end()
    waiting.join(10)
    turns.put("too late")
    assert seen == [None] and turns.next() is None


def test_whose_task_runs_has_no_second_one_begun_and_what_comes_last_only_where_it_may() -> None:
    turns: Turns[str] = Turns()
    turns.put("a1", "a")
    turns.put("c last", "c", is_last=True)
    assert turns.next(busy=["a"], is_last=False, waits=False) is None
    turns.put("b1", "b")
    assert turns.next(busy=["a"], is_last=False, waits=False) == "b1"
    assert [turns.next(), turns.next()] == ["a1", "c last"]


def test_what_comes_last_gives_whatever_follows_at_once_the_time_to_come() -> None:
    turns: Turns[str] = Turns()
    turns.put("last", is_last=True)
    threading.Timer(0.05, turns.put, ["at once"]).start()
    assert turns.next(rest_s=60.0) == "at once"
    assert turns.next(rest_s=0.01) == "last"
