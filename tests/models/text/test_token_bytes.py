from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from kvchat.models.text.token_bytes import bytes_of
from kvchat.models.text.tokenizer import ChatTokenizer


def test_the_bytes_of_tokens_that_are_bytes_make_up_the_text(byte_tokenizer: ChatTokenizer) -> None:
    for text in ("plain words", "naïve", "日本語 und 😀 !"):
        ids = byte_tokenizer.encode(text)
        assert b"".join(bytes_of(byte_tokenizer, token) for token in ids).decode() == text


@pytest.fixture(scope="module")
def byte_tokenizer() -> ChatTokenizer:
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    return ChatTokenizer(own)


def test_a_tokenizer_that_falls_back_to_bytes_keeps_the_space_before_a_word() -> None:
    vocab = {"<unk>": 0, "a": 1, "\u2581": 2, "\u2581b": 3} | {
        f"<0x{byte:02X}>": 4 + byte for byte in range(256)
    }
    own = Tokenizer(
        models.BPE(vocab=vocab, merges=[("\u2581", "b")] if "b" in vocab else [], byte_fallback=True)
    )
    own.normalizer = normalizers.Replace(" ", "\u2581")
    own.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = ChatTokenizer(own)
    assert bytes_of(tokenizer, 3) == b" b"
    assert bytes_of(tokenizer, 4 + 0xE2) == b"\xe2"
    assert bytes_of(tokenizer, 99_999) == b""
