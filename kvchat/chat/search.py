"""Finding words in what was said: by the full-text index, or by looking at every text where there is none."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from kvchat.chat.rows import moment
from kvchat.chat.rows import text as as_text
from kvchat.chat.schema import Connection
from kvchat.errors import UsageError

_AROUND = 40
"""Characters shown on either side of what was found."""

_UNSPACED = (
    r"[\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc"
    r"\U00020000-\U0003ffff]"
)
"""Scripts without spaces between words, in which an index of words finds nothing. Compiled by the first search."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An exchange that was found, with the text around the words in one line."""

    tree: str
    exchange: str
    text: str
    created: float


def search(db: Connection, text: str, limit: int, *, is_indexed: bool) -> list[Hit]:
    """Exchanges that contain all words of `text`, or words that begin with them; the newest first, no summaries.

    Raises UsageError when there is nothing to look for.
    """
    text = text.replace("\0", " ")  # where the index takes a question for ended
    words = text.split()
    if not any(letter.isalnum() for letter in text):
        raise UsageError("nothing to look for", "give a word or more")
    if is_indexed and not _is_beyond_index(text):
        rows = _indexed(db, words, limit)
    else:
        rows = _scanned(db, words, limit)
    return [
        Hit(as_text(tree), as_text(exchange), _around(as_text(user), as_text(answer), words), moment(created))
        for tree, exchange, user, answer, created in rows
    ]


_Row = tuple[object, object, object, object, object]
_COLUMNS = "SELECT e.tree, e.id, e.user, e.answer, e.created FROM"


def _is_beyond_index(text: str) -> bool:
    """Whether the index may miss what is looked for: words that are not spaced, or letters that can be put together of
    marks, which it knows how to leave out for two alphabets alone."""
    composed = (letter for letter in unicodedata.normalize("NFC", text) if unicodedata.decomposition(letter))
    return bool(re.search(_UNSPACED, text)) or any(
        not unicodedata.name(letter, "").startswith(("LATIN", "GREEK")) for letter in composed
    )


def _indexed(db: Connection, words: list[str], limit: int) -> list[_Row]:
    query = " ".join('"' + word.replace('"', '""') + '"*' for word in words if any(map(str.isalnum, word)))
    return db.execute(
        f"{_COLUMNS} exchange_text f JOIN exchange e ON e.number = f.rowid"
        " WHERE exchange_text MATCH ? AND e.follows IS NULL ORDER BY f.rowid DESC LIMIT ?",
        (query, limit),
    ).fetchall()


def _scanned(db: Connection, words: list[str], limit: int) -> list[_Row]:
    """Look at every text, in a form in which it does not matter of how many marks a letter is put together."""
    db.create_function("folded", 1, lambda value: _folded(as_text(value)), deterministic=True)
    has_word = "(instr(folded(e.user), ?) OR instr(folded(e.answer), ?))"
    return db.execute(
        f"{_COLUMNS} exchange e WHERE e.follows IS NULL AND {' AND '.join(has_word for _ in words)}"
        " ORDER BY e.number DESC LIMIT ?",
        (*(_folded(word) for word in words for _ in "ua"), limit),
    ).fetchall()


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _around(user: str, answer: str, words: Sequence[str]) -> str:
    """The text around the first word that can be seen in the message or in the answer."""
    user, answer, *words = (unicodedata.normalize("NFC", text) for text in (user, answer, *words))
    for text in (user, answer):
        for word in words:
            at = text.lower().find(word.lower())
            if at >= 0:
                start, end = max(0, at - _AROUND), at + len(word) + _AROUND
                middle = " ".join(text[start:end].split())
                return ("…" if start else "") + middle + ("…" if end < len(text) else "")
    return " ".join(user[: 2 * _AROUND].split())
