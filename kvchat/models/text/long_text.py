"""Long texts encoded piece by piece, cut where that is known and seen to change no token. Knows no tokenizer's inside.

One call of a tokenizer can't be interrupted, and lets no other thread run; between two pieces a cancellation is heard.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from itertools import islice

PIECE = 1 << 15
"""Characters of a piece, about: some hundredths of a second."""

_WINDOW = 256
_TRIES = 8
_PLACES = (
    (re.compile(r"(?<=[^\W_]) (?=[^\W_])"), re.compile(r"(?:[A-Za-z0-9]|[^\x00-\x7fĠĊĉč▁])[ Ġ▁]")),
    (re.compile(r"(?<=[A-Za-z0-9]) (?=[^\W_])"), re.compile(r"[A-Za-z0-9][ Ġ▁]")),
)
"""Places in texts, and tokens that lie over one: as vocabularies write them, with a sign for a space, and maybe with one
for each byte beyond ASCII."""

Encode = Callable[[str, bool], tuple[int, ...]]
"""A text, and whether it starts the prompt -> its ids."""


def places_of(vocabulary: Collection[str]) -> re.Pattern[str] | None:
    """The places, between a letter or a digit and the space behind it, over which no token lies; None for no such kind.

    There nothing is merged: what stands on the two sides is encoded apart in any case.
    """
    free = (place for place, over in _PLACES if not any(map(over.search, vocabulary)))
    return next(free, None)


def in_pieces(
    text: str,
    encode: Encode,
    places: re.Pattern[str],
    pause: Callable[[], None],
    *,
    is_start: bool = False,
    size: int = PIECE,
) -> tuple[int, ...]:
    """The ids of a text in pieces of `size` characters or more, cut at some of its `places`.

    `pause` is called before each piece, and may raise.
    """
    ids: list[int] = []
    start, end = 0, size
    while len(text) - end > size:
        cut = _cut(text, places.finditer(text, end, end + size), encode)
        if cut is None:
            end += size
            continue
        pause()
        ids += encode(text[start:cut], is_start and not start)
        start, end = cut, cut + size
    pause()
    return (*ids, *encode(text[start:], is_start and not start))


def _cut(text: str, places: Iterator[re.Match[str]], encode: Encode) -> int | None:
    """The first place around which the text gives the same ids in one and in two; None where none is soon found."""
    for found in islice(places, _TRIES):
        at = found.start()
        left, right = text[max(0, at - _WINDOW) : at], text[at : at + _WINDOW]
        if encode(left + right, False) == encode(left, False) + encode(right, False):
            return at
    return None
