from __future__ import annotations

import pytest

from kvchat.bench.measure import Spread, check_room, english, paired, rounds
from kvchat.errors import ContextOverflowError, UsageError


def test_all_take_turns_and_the_first_round_does_not_count() -> None:
    asked: list[str] = []

    def once(name: str) -> float:
        asked.append(name)
        return float(len(asked))

    found = rounds(("a", "b", "c"), 2, once)
    assert "".join(asked) == "abc" + "bca" + "cab"
    assert found == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}


def test_pairs_are_compared_round_by_round() -> None:
    ratio = paired({"ours": [1.0, 2.0, 10.0], "theirs": [2.0, 4.0, 20.0]}, "ours")["theirs"]
    assert ratio == Spread(2.0, 2.0, 2.0, 3)


def test_a_spread_is_shown_with_as_many_digits_as_it_needs() -> None:
    assert str(Spread.of([1234.5, 1200.0, 1300.0])) == "1,234 (1,200-1,300)"
    assert str(Spread.of([1.234])) == "1.23 (1.23-1.23)"


def words(text: str) -> int:
    return len(text.split())


def test_text_is_as_long_as_asked() -> None:
    assert words(english(500, words)) in range(500, 510)


def test_more_text_than_there_is_is_refused() -> None:
    with pytest.raises(UsageError, match="fewer than 9000000 tokens"):
        english(9_000_000, words)


def test_more_tokens_than_the_context_has_are_refused() -> None:
    check_room(512, 512)
    with pytest.raises(ContextOverflowError, match="the model has 512"):
        check_room(513, 512)
