from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvchat.backends.base import Reach
from kvchat.chat.anticipation import LONG_PAUSE_S, PAUSE_S, SENTENCE_PAUSE_S, Anticipation, Ask


def test_what_is_typed_is_asked_for_at_once_and_the_rest_behind_pauses() -> None:
    typing = Anticipation()
    assert typing.next("hello", 0.0, Reach.BEGUN) == Ask("hello", Reach.TYPED)
    assert typing.next("hello", 0.1, Reach.BEGUN) is None
    assert typing.wait_s(0.1) == PAUSE_S - 0.1
    assert typing.next("hello", PAUSE_S, Reach.BEGUN) == Ask("hello", Reach.WHOLE)
    assert typing.next("hello", LONG_PAUSE_S, Reach.BEGUN) == Ask("hello", Reach.BEGUN)
    assert typing.wait_s(LONG_PAUSE_S) is None
    assert typing.next("hello", 9.0, Reach.BEGUN) is None


def test_behind_a_sentence_the_answer_is_begun_sooner() -> None:
    typing = Anticipation()
    typing.next("how are you?", 0.0, Reach.BEGUN)
    assert typing.next("how are you?", SENTENCE_PAUSE_S, Reach.BEGUN) == Ask("how are you?", Reach.BEGUN)


def test_no_further_is_asked_for_than_the_settings_let() -> None:
    typing = Anticipation()
    typing.next("hello", 0.0, Reach.WHOLE)
    assert typing.next("hello", 9.0, Reach.WHOLE) == Ask("hello", Reach.WHOLE)
    assert typing.next("hello", 99.0, Reach.WHOLE) is None


def test_typing_on_lets_be_what_is_computed_and_an_edit_ends_it() -> None:
    typing = Anticipation()
    first = typing.next("hel", 0.0, Reach.BEGUN)
    assert first is not None
    assert typing.next("hell", 0.1, Reach.BEGUN) is None
    typing.end(first)
    assert typing.next("hello", 0.2, Reach.BEGUN) == Ask("hello", Reach.TYPED)
    assert typing.next("help", 0.3, Reach.BEGUN) == Ask("help", Reach.TYPED)
    typing.end(first)  # it ends late, and says nothing of what is asked for now
    assert typing.next("help me", 0.4, Reach.BEGUN) is None


def test_what_was_forgotten_is_asked_for_anew() -> None:
    typing = Anticipation()
    assert typing.next("hello", 0.0, Reach.TYPED) is not None
    assert typing.has_asked
    typing.forget()
    assert not typing.has_asked
    assert typing.next("hello", 0.1, Reach.TYPED) == Ask("hello", Reach.TYPED)


@given(st.lists(st.tuples(st.text("ab .", max_size=4), st.floats(0.0, 2.0))))
def test_behind_a_long_pause_the_text_that_stands_there_was_asked_for(keys: list[tuple[str, float]]) -> None:
    typing, now, asked = Anticipation(), 0.0, None
    text = ""
    for text, pause in keys:
        now += pause
        asked = typing.next(text, now, Reach.BEGUN) or asked
    while (wait := typing.wait_s(now)) is not None:
        now += wait + 1e-6
        asked = typing.next(text, now, Reach.BEGUN) or asked
    assert not text or (asked is not None and asked == Ask(text, Reach.BEGUN))
