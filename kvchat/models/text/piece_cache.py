"""The ids of pieces of text that were encoded lately, within a bound of bytes. Knows no tokenizer."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable

MAX_BYTES = 16 * 2**20
"""About what is kept at most; a single piece that would take a quarter of it is not kept."""

_ID_BYTES = 36  # an entry of a tuple, and the number that it points to
_ENTRY_BYTES = 200

Ids = tuple[int, ...]


class PieceCache:
    """Calls `encode` with a text and whether it starts the prompt, or gives what that gave before. From any thread."""

    def __init__(self, encode: Callable[[str, bool], Ids], *, max_bytes: int = MAX_BYTES) -> None:
        self.num_bytes = 0
        self.num_encoded = 0
        self._encode = encode
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, bool], Ids] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, text: str, *, is_start: bool = False) -> Ids:
        """The ids of a piece."""
        key = (text, is_start)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        ids = self._encode(text, is_start)
        with self._lock:
            self.num_encoded += 1
            if key not in self._kept and 4 * _size(key, ids) <= self._max_bytes:
                self._kept[key] = ids
                self.num_bytes += _size(key, ids)
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= _size(*self._kept.popitem(last=False))
        return ids


def _size(key: tuple[str, bool], ids: Ids) -> int:
    return sys.getsizeof(key[0]) + _ID_BYTES * len(ids) + _ENTRY_BYTES
