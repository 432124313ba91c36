"""What of a text a terminal may have: the one place that cleans what is printed on stdout and stderr. Knows no screen.

A terminal takes some characters for orders, and shows others as nothing, or in another order. Whatever wrote them (a
model, a file's name, an error's text), they reach no terminal: `CleanStream` stands before both streams, and what we
colour ourselves goes through it by `write_styled`, which lets nothing but colours pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TextIO

_ORDERS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f"
_GONE = (
    "\r\xad\u034f\u061c\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
"""Carriage returns, line and paragraph separators, and what has no width: bidi marks, joiners of words, annotations."""
_MARKED = "\x80-\x9f\u115f\u1160\u3164\uffa0\ud800-\udfff\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
"""C1 controls, letters that look like blanks, lone surrogates, and tags, which can hide whole texts."""
_EMOJI = "\xa9\xae\u203c-\u3299\U0001f000-\U0001faff"
_JOINING = (
    "\u0620-\u109f\u1780-\u18af"  # scripts from Arabic to Mongolian whose letters change beside a joiner
)
_IDEOGRAPHS = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HOSTILE = re.compile(
    f"[{_ORDERS}{_GONE}{_MARKED}]"
    f"|(?<![{_EMOJI}{_JOINING}\ufe0f])\u200d|(?<![{_JOINING}])\u200c"
    f"|(?<![{_EMOJI}])(?!(?<=[#*0-9])\ufe0f\u20e3)[\ufe00-\ufe0f]"
    f"|(?<![{_IDEOGRAPHS}])[\U000e0100-\U000e01ef]"
)
_DROPPED = re.compile(f"[{_GONE}\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_BREAK = re.compile("\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_SGR = re.compile(r"(\x1b\[[0-9;]*m)")


def sanitize(text: str, *, behind: str = "") -> str:
    """Text that can't move a cursor, set a title, reorder a line or hide in one, whatever a model wrote.

    Control characters become their visible pictures (ESC is shown as U+241B); C1 controls, tags and lone surrogates
    the replacement character; what has no width goes, but for the joiners inside emoji and in scripts that are
    written with them. Of a text in pieces, `behind` is the character before this piece.
    """
    return _replaced(_shown, text, behind)


def escaped(text: str, *, behind: str = "") -> str:
    """JSON in which such characters are written as JSON writes them: the same value, and nothing for a terminal."""
    return _replaced(_json_escape, text, behind)


def one_line(text: str) -> str:
    """A name that somebody gave, where each takes a line: what would begin another one is a mark."""
    return _BREAK.sub("⏎", text).replace("\t", " ")


def marked(text: str) -> str:
    """As many characters, with a mark in the place of each that would be left out."""
    return _HOSTILE.sub(lambda found: _shown(found) or "\ufffd", text)


def _as_it_is(text: str, *, behind: str = "") -> str:
    return text


def _replaced(replace: Callable[[re.Match[str]], str], text: str, behind: str) -> str:
    if not behind:
        return _HOSTILE.sub(replace, text)
    return _HOSTILE.sub(replace, behind + text)[len(_HOSTILE.sub(replace, behind)) :]


def _shown(found: re.Match[str]) -> str:
    char = found[0]
    if _DROPPED.match(char):
        return ""
    if char == "\x7f":
        return "\u2421"
    return chr(0x2400 + ord(char)) if char < " " else "\ufffd"


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


class CleanStream:
    """A text stream in front of `stream` that cleans what is written, also where it comes in pieces."""

    def __init__(self, stream: TextIO, clean: Callable[..., str] = sanitize) -> None:
        self.stream = stream
        self._clean = clean
        self._behind = ""

    def write(self, text: str) -> int:
        """Write text, cleaned."""
        self.stream.write(self._clean(text, behind=self._behind))
        self._behind = text[-1:] or self._behind
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts, cleaned."""
        for line in lines:
            self.write(line)

    def write_styled(self, text: str) -> None:
        """Write text with colours of our own making; all else in it is cleaned."""
        for number, piece in enumerate(_SGR.split(text)):
            self.stream.write(piece) if number % 2 else self.write(piece)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def styled(text: str) -> str:
    """Text with colours of our own making, in which all else is cleaned."""
    return "".join(piece if number % 2 else sanitize(piece) for number, piece in enumerate(_SGR.split(text)))


def for_messages(stream: TextIO | CleanStream, *, is_json: bool = False) -> CleanStream:
    """A stream for people: clean wherever it leads, for a log is read in a terminal too."""
    if isinstance(stream, CleanStream):
        return stream
    return CleanStream(stream, escaped if is_json else sanitize)


def for_data(stream: TextIO | CleanStream, *, is_json: bool = False) -> CleanStream:
    """A stream for answers and documents: clean in a terminal; files and pipes get them as they are."""
    if isinstance(stream, CleanStream):
        return stream
    return for_messages(stream, is_json=is_json) if stream.isatty() else CleanStream(stream, _as_it_is)


def raw(stream: TextIO | CleanStream) -> TextIO:
    """The stream itself, for sequences of our own making."""
    return stream.stream if isinstance(stream, CleanStream) else stream
