"""Which of the user's sentences a summary must not lose, and how many of them have room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvchat.backends.base import Role, Turn
from kvchat.chat.noting import HEAD, LONGEST_MESSAGE, Note, fitting, listed, listed_text, notes
from kvchat.chat.tree import Exchange
from tests.backends.measure_endings import QUESTIONS


def noted(*messages: str) -> list[str]:
    """What is kept of some messages."""
    path = [Exchange(str(at), None, Turn(Role.USER, text)) for at, text in enumerate(messages)]
    return [note.text for note in notes(path)]


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("Hello. My name is Marlow. Please call me Marlow from now on.", 2),
        ("Remember this: the code of the safe is 1407.", 1),
        ("Always answer in French. What is a cat?", 1),
        ("I live in Rome, and my dog is called Rex. What should I cook?", 1),
        ("The meeting with Anna is at 10.30 on Monday. Please write an email.", 1),
        ("version = 3.2.1", 1),
        ("Thanks! That was nice.", 0),
        ("How far is it to 42nd Street?", 0),
        ("Write a poem about Paris in 12 lines.", 0),
        ("ok", 0),
        ("", 0),
    ],
)
def test_instructions_and_facts_are_kept_word_for_word_and_questions_and_talk_are_not(
    message: str, kept: int
) -> None:
    found = noted(message)
    assert len(found) == kept
    assert all(sentence in message for sentence in found)


def test_next_to_nothing_is_kept_of_plain_questions() -> None:
    assert len(noted(*QUESTIONS)) <= 2


def test_what_is_said_again_is_kept_once_and_pastes_and_code_are_not() -> None:
    assert noted("My cat is called Tom.", "My cat is called Tom.") == ["My cat is called Tom."]
    assert not noted("My cat is called Tom. " * (LONGEST_MESSAGE // 20))
    assert noted("My cat is called Tom.\n```\nmy = 1\n```\n") == ["My cat is called Tom."]


def test_what_is_to_be_remembered_is_a_fact_and_takes_no_room_from_an_instruction() -> None:
    texts = "Always call me Marlow.", "Remember this: the code is 12.", "Don't forget the milk."
    path = [Exchange(str(at), None, Turn(Role.USER, text)) for at, text in enumerate(texts)]
    assert [note.is_standing for note in notes(path)] == [True, False, False]


def test_where_there_is_no_room_for_all_instructions_go_first_and_then_the_newest() -> None:
    found = [Note("never shout", True), Note("a is 1", False), Note("b is 2", False), Note("be kind", True)]
    assert fitting(found, 1000) == ("never shout", "a is 1", "b is 2", "be kind")
    assert fitting(found, 34) == ("never shout", "b is 2", "be kind")
    assert fitting(found, 12) == ("be kind",)
    assert fitting(found, 5) == ()


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=40), st.booleans()), unique_by=lambda one: one[0]),
    st.integers(0, 400),
)
def test_what_fits_keeps_its_order_and_its_bound(pairs: list[tuple[str, bool]], most_bytes: int) -> None:
    found = [Note(*pair) for pair in pairs]
    chosen = fitting(found, most_bytes)
    assert list(chosen) == [note.text for note in found if note.text in chosen]
    assert sum(len(text.encode()) + 3 for text in chosen) <= most_bytes


def test_it_is_told_as_a_list_and_counted_again_from_it() -> None:
    assert listed(()) == listed_text("") == listed_text("- one") == ""
    assert listed(("a", "b")) == f"{HEAD}\n- a\n- b"
    assert listed_text(listed(("a", "b")) + "\n\nSummarise it.") == "2 sentences of yours"
    assert listed_text(listed(("a",))) == "1 sentence of yours"
