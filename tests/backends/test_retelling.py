"""A conversation told over a stream in parts is the one that was meant, and who was told nothing before is told all."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from kvchat.backends.base import Role, Turn
from kvchat.backends.retelling import History, Ids, prompt_heard, prompt_telling

TURNS = st.lists(
    st.builds(
        Turn,
        role=st.sampled_from(Role),
        text=st.sampled_from(["", "fox", "日本"]),
        tokens=st.none() | st.lists(st.integers(0, 3), max_size=3).map(tuple),
        tokenizer=st.none() | st.just("t"),
        time_s=st.none() | st.sampled_from([1.0, 2.0]),
        pinned=st.booleans(),
    ),
    max_size=4,
)


def all_of(turns: list[Turn]) -> list[object]:
    """All that a turn says, what its comparison leaves out too."""
    return [(turn, turn.time_s, turn.pinned) for turn in turns]


@settings(deadline=None)
@given(histories=st.lists(st.tuples(TURNS, st.integers(0, 4), st.booleans()), max_size=8))
def test_every_history_arrives_whole(histories: list[tuple[list[Turn], int, bool]]) -> None:
    here, there = History(), History()
    before: list[Turn] = []
    for new, shared, is_known in histories:
        turns = [*before[:shared], *new]
        telling = (here if is_known else History()).telling(turns)
        assert all_of(there.heard(json.loads(json.dumps(telling)))) == all_of(turns)
        here.told(turns)
        before = turns


def test_what_was_not_sent_changes_nothing() -> None:
    here, there = History(), History()
    said = [Turn(Role.USER, "a"), Turn(Role.ASSISTANT, "b"), Turn(Role.USER, "c")]
    there.heard(here.telling(said[:1]))
    here.told(said[:1])
    here.telling(said[:2])  # refused: too much waits
    assert there.heard(here.telling(said)) == said


def test_a_look_at_nothing_in_between_costs_no_retelling() -> None:
    here = History()
    said = [Turn(Role.USER, "a"), Turn(Role.ASSISTANT, "b")]
    for turns in (said, (), said[:1]):
        here.told(turns)
    telling = here.telling([*said, Turn(Role.USER, "c")])
    assert telling["same"] == 2 and len(telling["then"]) == 1


def test_a_beginning_that_is_told_whole_takes_nothing_from_what_was_heard() -> None:
    here, there = History(), History()
    said = [Turn(Role.USER, "a"), Turn(Role.ASSISTANT, "b"), Turn(Role.USER, "c")]
    for turns in (said, said[:1]):
        there.heard(History().telling(turns))
        here.told(turns)
    assert there.heard(here.telling(said[:2])) == said[:2]


def test_another_time_or_pin_is_told_though_it_makes_no_other_prompt() -> None:
    here = History()
    said = Turn(Role.SYSTEM, "a", time_s=1.0)
    here.told([said])
    assert [
        type(here.telling([each])) for each in (replace(said, time_s=2.0), replace(said, pinned=True))
    ] == [
        list,
        list,
    ]


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 2)), prompt=st.lists(st.integers(0, 2)))
def test_every_prompt_arrives_whole(ids: list[int], prompt: list[int]) -> None:
    known = Ids(1, tuple(ids))
    assert list(prompt_heard(json.loads(json.dumps(prompt_telling(prompt, known))), known)) == prompt
