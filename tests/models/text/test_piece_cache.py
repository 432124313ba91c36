"""Ids of pieces are kept within a bound of bytes, and are what encoding gives."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from kvchat.models.text.piece_cache import PieceCache


def letters(text: str, is_start: bool) -> tuple[int, ...]:
    return (int(is_start), *map(ord, text))


def test_a_piece_is_encoded_once_for_each_place_that_it_may_stand_at() -> None:
    cache = PieceCache(letters)
    for _ in range(3):
        assert cache("abc") == (0, 97, 98, 99)
        assert cache("abc", is_start=True) == (1, 97, 98, 99)
    assert cache.num_encoded == 2


@given(st.lists(st.tuples(st.integers(0, 4000), st.booleans()), max_size=60))
def test_no_more_is_kept_than_the_bound_whatever_comes(pieces: list[tuple[int, bool]]) -> None:
    cache = PieceCache(letters, max_bytes=200_000)
    for size, is_start in pieces:
        text = "x" * size
        assert cache(text, is_start=is_start) == letters(text, is_start)
        assert 0 <= cache.num_bytes <= 200_000


def test_a_text_that_would_push_all_others_out_is_not_kept() -> None:
    cache = PieceCache(letters, max_bytes=100_000)
    cache("short")
    kept = cache.num_bytes
    cache("x" * 50_000)
    assert cache.num_bytes == kept
    cache("short")
    assert cache.num_encoded == 2


def test_several_threads_agree() -> None:
    cache = PieceCache(letters, max_bytes=20_000)

    def work(seed: int) -> None:
        for number in range(300):
            text = "y" * ((number * seed) % 97)
            assert cache(text) == letters(text, False)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 <= cache.num_bytes <= 20_000
