"""Large pastes, which stand in the input as one mark each, such as `[pasted 200 lines #1]`. Knows no screen."""

from __future__ import annotations

import re

_LINES = 10
_CHARACTERS = 1500
_KEPT = 50
_MARK = re.compile(r"\[pasted \d+ (?:lines|characters) #\d+\]")


class Pastes:
    """The texts behind the marks of one dialogue. What is no longer a whole mark is text like any other."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._count = 0

    def taken(self, text: str) -> str:
        """What a paste puts into the input: a mark where it is long, or else the paste itself."""
        num_lines = text.count("\n") + 1
        if num_lines <= _LINES and len(text) <= _CHARACTERS:
            return text
        self._count += 1
        size = f"{num_lines} lines" if num_lines > _LINES else f"{len(text)} characters"
        mark = f"[pasted {size} #{self._count}]"
        self._texts[mark] = text
        if len(self._texts) > _KEPT:
            del self._texts[next(iter(self._texts))]
        return mark

    def opened(self, text: str) -> str:
        """A text with what was pasted in the place of the marks."""
        return _MARK.sub(lambda found: self._texts.get(found[0], found[0]), text)

    def folded(self, text: str) -> str:
        """A text with the marks in the place of what was pasted, where it is there unchanged."""
        for mark, pasted in self._texts.items():
            text = text.replace(pasted, mark)
        return text

    def mark_before(self, text: str) -> str:
        """The mark that a text ends in; empty where it ends in none."""
        found = re.search(_MARK.pattern + r"\Z", text)
        return found[0] if found and found[0] in self._texts else ""
