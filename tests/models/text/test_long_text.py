"""A long text has the same ids in pieces as in one, and between two pieces somebody is heard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from kvchat.models.pauses import Interrupted
from kvchat.models.text.long_text import PIECE, in_pieces, places_of
from kvchat.models.text.tokenizer import ChatTokenizer, _encode
from tests.tiny import CORPUS, byte_level_tokenizer

WORDS = st.sampled_from(
    [
        "fox",
        "the",
        "über",
        "日本語",
        "\n\n",
        "  ",
        " ",
        "\t",
        "1234",
        "can't",
        "<|im_end|>",
        "e\u0301",
        "…",
        "a" * 60,
    ]
)
TEXTS = st.lists(
    st.tuples(WORDS, st.sampled_from([" ", "", "  "])).map("".join), min_size=30, max_size=200
).map("".join)


def trained(tokenizer: Tokenizer, trainer: object) -> Tokenizer:
    tokenizer.train_from_iterator([*CORPUS, "日本語 über 1234 can't …"], trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """As SentencePiece makes them: a space before the first word, and no words to cut the text into."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace()
    return trained(
        tokenizer, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    )


def normalized() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    return trained(
        tokenizer, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    )


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(
        tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    )


def unigrams() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    return trained(tokenizer, trainer)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": byte_level_tokenizer,
    "metaspace": metaspace,
    "normalized": normalized,
    "word pieces": word_pieces,
    "unigrams": unigrams,
}


def silent() -> None:
    """Nobody is to be heard."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_same_ids_in_pieces(kind: str) -> None:
    tokenizer = ChatTokenizer(KINDS[kind]())._full
    places = places_of(tokenizer.get_vocab())
    assert (places is None) == (kind in ("metaspace", "normalized"))  # they merge over spaces
    if places is None:
        return
    encode = partial(_encode, tokenizer)

    @settings(max_examples=40, deadline=None)
    @given(text=TEXTS, size=st.integers(1, 300), is_start=st.booleans())
    def are_same(text: str, size: int, is_start: bool) -> None:
        assert in_pieces(text, encode, places, silent, is_start=is_start, size=size) == encode(text, is_start)

    are_same()


def test_a_text_is_really_cut() -> None:
    tokenizer, pauses = ChatTokenizer(byte_level_tokenizer()), [0]

    def pause() -> None:
        pauses[0] += 1

    places = places_of(tokenizer._full.get_vocab())
    assert places is not None
    in_pieces("the fox is quick " * 600, partial(_encode, tokenizer._full), places, pause, size=1000)
    assert 8 <= pauses[0] <= 11


def test_a_text_is_cut_only_where_no_token_lies_over_the_place() -> None:
    usual = places_of(["Ġthe", "the", "ĠĠ", "ĊĠ", ".Ġ", "▁a", " b"])
    narrow = places_of(["Ġthe", "ãĢĤĠ"])
    assert usual is not None and narrow is not None
    assert (bool(usual.search("über é und")), bool(narrow.search("über é und"))) == (True, True)
    assert (bool(usual.search("й й")), bool(narrow.search("й й"))) == (True, False)
    assert [places_of([token]) for token in ("ofĠthe", "n▁t", "a b", "1 ")] == [None] * 4


def test_encoding_a_long_text_ends_soon_after_it_was_cancelled() -> None:
    tokenizer, asked = ChatTokenizer(byte_level_tokenizer()), [0]

    def is_cancelled() -> bool:
        asked[0] += 1
        return asked[0] > 2

    text = "the fox is quick " * (6 * PIECE // 17)
    with pytest.raises(Interrupted), tokenizer.hearing(is_cancelled):
        tokenizer.encode(text)
    assert asked[0] == 3
    asked[0] = 0
    with pytest.raises(Interrupted), tokenizer.hearing(is_cancelled):
        tokenizer.count(text)
    tokenizer.encode("short")  # nobody is asked any more


def test_who_listens_in_another_thread_cancels_nothing_here() -> None:
    import threading

    tokenizer = ChatTokenizer(byte_level_tokenizer())
    heard: list[str] = []

    def other() -> None:
        try:
            tokenizer.encode("the fox " * (3 * PIECE // 8))
        except Interrupted:
            heard.append("cancelled")

    with tokenizer.hearing(lambda: True):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert heard == []
