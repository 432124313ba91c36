from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvchat.engine.drafting import GRAMS, MOST_EVIDENCE, PromptLookup

FEW_TOKENS = st.lists(st.integers(0, 3), max_size=60)


def evidence_of(tokens: list[int], place: int) -> int:
    equal = 0
    while equal < min(place, MOST_EVIDENCE) and tokens[place - 1 - equal] == tokens[-1 - equal]:
        equal += 1
    return equal


def latest_by_scanning(tokens: list[int]) -> int:
    for size in GRAMS:
        places = [at for at in range(size, len(tokens)) if tokens[at - size : at] == tokens[-size:]]
        if places:
            return places[-1]
    return 0


def begun(tokens: list[int]) -> PromptLookup:
    lookup = PromptLookup()
    lookup.begin(tokens)
    return lookup


@given(FEW_TOKENS)
def test_the_index_finds_what_a_scan_finds(tokens: list[int]) -> None:
    lookup, place = begun(tokens), latest_by_scanning(tokens)
    assert lookup.evidence == (evidence_of(tokens, place) if place else 0)
    guess = lookup.draft(5)
    if place:
        assert guess[: len(tokens) - place] == tokens[place : place + 5]
    else:
        assert guess == []


@given(st.lists(FEW_TOKENS, max_size=12))
def test_token_by_token_it_finds_as_much_as_at_once(pieces: list[list[int]]) -> None:
    lookup = begun([])
    tokens: list[int] = []
    for piece in pieces:
        lookup.extend(piece)
        tokens += piece
        assert lookup.evidence >= begun(tokens).evidence


def test_a_text_that_is_repeated_is_guessed_to_its_end() -> None:
    text = list(range(100, 130))
    lookup = begun([*text, 1, 2, 3, *text[:2]])
    assert lookup.draft(8) == text[2:10]
    assert lookup.evidence == 2


def test_the_source_of_a_right_guess_is_followed_though_its_words_occurred_since() -> None:
    once, again = [7, 8, 9, 5, 6, 50, 51], [5, 6, 90, 91]
    lookup = begun([*once, *again, 7, 8])
    assert lookup.draft(3) == [9, 5, 6]
    lookup.extend([9, 5, 6])
    assert lookup.draft(2) == [50, 51], "and not what followed 5, 6 the last time"


def test_a_repetition_goes_on_behind_its_end() -> None:
    assert begun([1, 2, 3, 1, 2, 3, 1, 2]).draft(7) == [3, 1, 2, 3, 1, 2, 3]


def test_new_text_gives_no_guess() -> None:
    lookup = begun([1, 2, 3, 4])
    assert (lookup.evidence, lookup.draft(4)) == (0, [])
    lookup.extend([2])
    assert lookup.draft(4) == [], "one token says too little"


def test_another_conversation_forgets_the_first() -> None:
    lookup = begun([1, 2, 3, 4, 5])
    lookup.begin([9, 8, 7, 1, 2])
    assert lookup.draft(3) == []


def test_a_conversation_that_became_longer_is_kept() -> None:
    lookup = begun([1, 2, 3, 4, 5])
    lookup.begin([1, 2, 3, 4, 5, 6, 1, 2])
    assert lookup.draft(3) == [3, 4, 5]


def test_equal_hashes_of_other_tokens_are_no_find() -> None:
    assert hash((-1, 5)) == hash((-2, 5))
    assert begun([0, -1, 5, 6, 0, -2, 5]).evidence <= 1
