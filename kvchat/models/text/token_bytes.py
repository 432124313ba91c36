"""The bytes of one token as it stands behind other text; several tokens may make one character. Knows no answer."""

from __future__ import annotations

import re
from functools import cache

from kvchat.models.text.tokenizer import ChatTokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BEFORE = "a"
_REPLACEMENT = "\ufffd"


def bytes_of(tokenizer: ChatTokenizer, token: int) -> bytes:
    """The bytes that a token adds to a text. A control token's are those of its name; of one that there is not, none."""
    piece = tokenizer.piece(token)
    if found := _BYTE.fullmatch(piece):
        return bytes([int(found[1], 16)])
    before = list(tokenizer.encode_as_text(_BEFORE))
    text = tokenizer.decode([*before, token])[len(tokenizer.decode(before)) :]
    if _REPLACEMENT in text and all(letter in _letters() for letter in piece):
        return bytes(_letters()[letter] for letter in piece)
    return (text or piece).encode("utf-8", "replace")


@cache
def _letters() -> dict[str, int]:
    """The letters in which tokenizers that work on bytes write them: printable ones are themselves, the others follow
    one another from U+0100 on (GPT-2, Radford et al. 2019)."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [number for number in range(256) if number not in own]
    return {chr(number): number for number in own} | {chr(256 + at): one for at, one in enumerate(others)}
