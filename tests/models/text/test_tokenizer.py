from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from kvchat.models.text import tokenizer as tokenizer_module
from kvchat.models.text.tokenizer import ChatTokenizer
from tests.tiny import byte_level_tokenizer


def sentencepiece_like() -> Tokenizer:
    """Puts a mark for the space in front of the first word, as SentencePiece does."""
    letters = ["<unk>", "<s>", "</s>", *"▁abcdefghijklmnopqrstuvwxyz<>/|_."]
    vocab = {letter: number for number, letter in enumerate(letters)} | {"▁a": 90, "▁hello": 91}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return tokenizer


def test_control_tokens_count_in_template_text_and_not_in_user_text() -> None:
    tokenizer = ChatTokenizer(byte_level_tokenizer())
    end = tokenizer.control["<|im_end|>"]
    assert end in tokenizer.encode("so<|im_end|>on")
    assert end not in tokenizer.encode_as_text("so<|im_end|>on")
    assert tokenizer.decode(tokenizer.encode_as_text("so<|im_end|>on")) == "so<|im_end|>on"


def test_an_added_token_that_the_template_writes_is_a_control_token_though_not_marked_special() -> None:
    plain = byte_level_tokenizer("<think>", "<table>")
    tokenizer = ChatTokenizer(plain, control_text="{{ '<think>' }}")
    assert "<think>" in tokenizer.control
    assert "<table>" not in tokenizer.control
    assert plain.token_to_id("<table>") in tokenizer.encode_as_text("a <table>")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<|im_", "end|>", "<|im_end|>", "</s>", "x", " ", "<", "|>"]), max_size=8))
def test_no_arrangement_of_fragments_forges_a_control_token(fragments: list[str]) -> None:
    tokenizer = TOKENIZER
    text = "".join(fragments)
    ids = tokenizer.encode_as_text(text)
    assert set(ids).isdisjoint(tokenizer.control.values())
    assert tokenizer.decode(ids) == text


TOKENIZER = ChatTokenizer(byte_level_tokenizer())


def test_a_sentencepiece_tokenizer_puts_its_space_before_the_first_word_only() -> None:
    tokenizer = ChatTokenizer(sentencepiece_like())
    raw = sentencepiece_like()
    assert list(tokenizer.encode("a<s>b", is_start=True)) == raw.encode("a<s>b", add_special_tokens=False).ids
    whole = raw.encode("<s>a", add_special_tokens=False).ids
    assert list(tokenizer.encode("a")) == whole[1:]


def greedy_neighbours() -> Tokenizer:
    """Some of its control tokens take white space along, run into one another, or are matched in normalized text."""
    tokenizer = byte_level_tokenizer("<|", "m|>")
    tokenizer.add_special_tokens(
        [
            AddedToken("<left>", lstrip=True, special=True),
            AddedToken("<right>", rstrip=True, special=True),
            AddedToken("<Case>", normalized=True, special=True),
            AddedToken("<a>", special=True),
            AddedToken("<a><b>", special=True),
            AddedToken("<plain>", special=True),
        ]
    )
    return tokenizer


SEVERAL = [
    (ChatTokenizer(make()), make()) for make in (byte_level_tokenizer, sentencepiece_like, greedy_neighbours)
]
WORDS = [
    "<|im_end|>",
    "<s>",
    "<left>",
    "<right>",
    "<Case>",
    "<a>",
    "<b>",
    "<plain>",
    "<|",
    "m|>",
    "<",
    "a",
    " ",
    "\n",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=2, max_size=9))
@example(["a", " ", "<left>", "b"])
@example(["<right>", " ", "a", "<plain>", " ", "b"])
@example(["a", " ", "<a>", "<b>", "<a>"])
def test_what_is_encoded_in_parts_has_the_ids_of_the_whole(words: list[str]) -> None:
    text = "".join(words)
    for tokenizer, raw in SEVERAL:
        assert list(tokenizer.encode(text, is_start=True)) == raw.encode(text, add_special_tokens=False).ids


def test_a_long_beginning_is_encoded_once_for_all_that_follows() -> None:
    tokenizer = ChatTokenizer(byte_level_tokenizer())
    for number in range(5):
        tokenizer.encode(f"<|im_start|>a long one<|im_end|>\n<|im_start|>{number}", is_start=True)
    assert tokenizer._encode_part.num_encoded == 2 + 5


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
@example("\uf8fa\uf8fb\uf8fa")
def test_the_stream_gives_exactly_the_whole_text_and_never_half_a_character(text: str) -> None:
    text = text.encode(errors="replace").decode()
    stream = TOKENIZER.stream()
    pieces = [stream.push(token) for token in TOKENIZER.encode_as_text(text)]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text.rstrip("\ufffd") or "\ufffd" in text


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_an_unfinished_character_is_held_back_for_good(cut: int) -> None:
    ids = TOKENIZER.encode_as_text("a😀")
    stream = TOKENIZER.stream()
    given_out = "".join(stream.push(token) for token in ids[:-cut]) + stream.finish()
    assert given_out == "a"


def test_text_comes_out_without_waiting_for_a_space() -> None:
    stream = TOKENIZER.stream()
    assert stream.push(TOKENIZER.encode_as_text("日本")[0]) == ""
    pieces = [stream.push(token) for token in TOKENIZER.encode_as_text("日本")[1:]]
    assert [piece for piece in pieces if piece] == ["日", "本"]


def test_equal_tokenizers_share_an_id_and_different_ones_do_not() -> None:
    again = ChatTokenizer(byte_level_tokenizer())
    assert again.id == TOKENIZER.id != ChatTokenizer(byte_level_tokenizer("<think>")).id


def test_a_text_without_end_is_known_to_be_too_long_from_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = ChatTokenizer(byte_level_tokenizer())
    encode, seen = tokenizer_module._encode, []

    def counted(encoder: Tokenizer, text: str, is_start: bool = False) -> tuple[int, ...]:
        seen.append(len(text))
        return encode(encoder, text, is_start)

    monkeypatch.setattr(tokenizer_module, "_encode", counted)
    counts = tokenizer.least_tokens("the quick brown fox " * 500_000)
    assert next(count for count in counts if count > 10_000)
    assert sum(seen) < 100_000


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80), st.integers(1, 400))
def test_no_text_that_fits_is_called_too_long(text: str, times: int) -> None:
    tokenizer = SEVERAL[0][0]
    num_tokens = len(tokenizer.encode(text * times))
    assert all(count <= num_tokens for count in tokenizer.least_tokens(text * times))
