from __future__ import annotations

from itertools import pairwise
from statistics import mean

from hypothesis import given
from hypothesis import strategies as st

from kvchat.bench.typing import MESSAGES
from kvchat.bench.typist import Typist


@given(st.integers(0, 10_000), st.sampled_from(MESSAGES))
def test_what_is_sent_is_the_message_with_a_word_more_at_most(seed: int, message: str) -> None:
    strokes = list(Typist(seed).strokes(message))
    assert [stroke.is_enter for stroke in strokes] == [False] * (len(strokes) - 1) + [True]
    sent = strokes[-1].text.split(" ")
    assert set(message.split(" ")) <= set(sent)
    assert len(sent) - len(message.split(" ")) in (0, 1)
    assert all(one.at_s <= other.at_s for one, other in pairwise(strokes))


@given(st.integers(0, 10_000))
def test_the_same_seed_types_the_same(seed: int) -> None:
    assert list(Typist(seed).strokes(MESSAGES[0])) == list(Typist(seed).strokes(MESSAGES[0]))


def typed() -> list[tuple[str, str, float]]:
    """Of many messages: what stood in the input before and after each key, and the seconds between."""
    keys = []
    for seed in range(300):
        strokes = list(Typist(seed).strokes(MESSAGES[seed % len(MESSAGES)]))[:-1]
        keys += [
            (one.text, other.text, other.at_s - one.at_s) for one, other in pairwise(strokes) if one.text
        ]
    return keys


def test_it_types_about_as_fast_and_as_wrongly_as_people_were_measured_to() -> None:
    keys = typed()
    erased = [after for before, after, _ in keys if len(after) < len(before)]
    assert 0.04 < len(erased) / len(keys) < 0.08  # 6 in 100
    assert 0.2 < mean(seconds for _, _, seconds in keys) < 0.3  # 0.24 s
    in_words = [s for before, after, s in keys if after[:-1] == before and after[-1].isalpha()]
    between = [s for before, after, s in keys if after[:-1] == before and after.endswith(" ")]
    assert mean(between) > mean(in_words) + 0.1
    assert any(len(after) > len(before) + 1 for before, after, _ in keys)  # a paste
    assert any(not after.startswith(before) and len(after) > len(before) for before, after, _ in keys)
