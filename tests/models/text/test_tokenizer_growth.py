"""Tokenizers that make a text longer: a little as published ones do, and so much that no message would fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers

from kvchat.errors import ModelUnavailableError
from kvchat.models.text.tokenizer_file import read_tokenizer
from kvchat.models.text.tokenizer_growth import MAX_GROWTH, check_growth
from tests.tiny import byte_level_tokenizer

LONG = "e" * (MAX_GROWTH + 1)
PATH = Path("tokenizer.json")


def normalizing(*steps: Any) -> Tokenizer:
    tokenizer = byte_level_tokenizer()
    tokenizer.normalizer = normalizers.Sequence(list(steps))
    return tokenizer


def decoding(*steps: Any) -> Tokenizer:
    tokenizer = byte_level_tokenizer()
    tokenizer.decoder = decoders.Sequence(list(steps))
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        normalizing(normalizers.Replace("e", LONG)),
        normalizing(normalizers.Replace(Regex("[a-e]"), LONG)),
        normalizing(normalizers.Prepend(LONG)),
        normalizing(normalizers.NFC(), normalizers.Sequence([normalizers.Replace("e", LONG)])),
        normalizing(*[normalizers.Replace("e", "ee")] * 9),
        normalizing(*[normalizers.Replace("e", "E" * 20), normalizers.Lowercase()] * 2),
        normalizing(normalizers.Prepend("e" * 20), normalizers.Replace(Regex("."), "x" * 20)),
        decoding(decoders.Replace("e", LONG)),
    ],
    ids=lambda tokenizer: str(tokenizer.normalizer or tokenizer.decoder)[:60],
)
def test_many_letters_in_the_place_of_one_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelUnavailableError, match="letters in the place of one") as caught:
        check_growth(tokenizer, PATH)
    assert "\n" not in str(caught.value) and caught.value.remedy


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level_tokenizer(),
        normalizing(normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")),
        normalizing(
            *[normalizers.Replace(letter, letter.lower() + "h") for letter in "ABCDEFGILMNOPQRSTUVWXYZ"]
        ),
        normalizing(normalizers.Replace("e" * 300, "e" * 300), normalizers.Replace(Regex(" +"), "")),
        decoding(decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()),
    ],
    ids=lambda tokenizer: str(tokenizer.normalizer or tokenizer.decoder)[:60],
)
def test_a_letter_or_two_in_the_place_of_one_are_taken(tokenizer: Tokenizer) -> None:
    check_growth(tokenizer, PATH)


def test_a_file_that_makes_texts_too_long_is_refused_before_it_is_used(tmp_path: Path) -> None:
    parsed = json.loads(byte_level_tokenizer().to_str())
    parsed["normalizer"] = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 100_000}
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    with pytest.raises(ModelUnavailableError, match=r"tokenizer\.json: its normalizer writes more than 256"):
        read_tokenizer(tmp_path)
