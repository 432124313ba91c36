"""How much longer a tokenizer may make a text before it cuts it: what one message becomes has to fit into memory."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from kvchat.errors import ModelUnavailableError

MAX_GROWTH = 256
"""The most letters that may stand for one; published tokenizers write a letter or two."""
_PARTS = ("normalizer", "pre_tokenizer", "decoder")


def check_growth(tokenizer: Tokenizer, path: Path) -> None:
    """Raise ModelUnavailableError for a tokenizer that writes absurdly many letters in the place of one."""
    for name in _PARTS:
        part = getattr(tokenizer, name)
        if part is not None and _grows_too_much(json.loads(part.__getstate__())):
            what = f"{path}: its {name} writes more than {MAX_GROWTH} letters in the place of one"
            raise ModelUnavailableError(what, "take another model")


def _grows_too_much(part: Mapping[str, Any]) -> bool:
    """Whether one letter may become too many: a step makes longer what earlier ones wrote, if it may find it at all."""
    grown: dict[str, int] = {}  # by letters that were written, how many of one
    for sought, content in _writings(part):
        met = grown.values() if sought is None else [grown.get(letter, 1) for letter in set(sought)]
        growth = max(met, default=1) * -(-len(content) // len(sought or "x"))
        if growth > MAX_GROWTH:
            return True
        grown |= {letter: max(growth, grown.get(letter, 1)) for letter in set(_folded(content))}
    return False


def _writings(part: Mapping[str, Any]) -> Iterator[tuple[str | None, str]]:
    """What each step seeks, None where that may be anything, and what it writes there."""
    if part["type"] == "Sequence":
        for step in next(value for value in part.values() if isinstance(value, list)):
            yield from _writings(step)
    elif part["type"] == "Replace":
        sought = part["pattern"].get("String")
        yield sought and _folded(sought), part["content"]
    elif part["type"] == "Prepend":
        yield None, part["prepend"]


def _folded(text: str) -> str:
    """Letters as other steps may make them alike."""
    return unicodedata.normalize("NFKC", text).casefold()
