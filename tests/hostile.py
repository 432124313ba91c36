"""Sixty-four texts that give a terminal orders or hide in a line, and what must never be printed."""

from __future__ import annotations

import re
import unicodedata

_SEQUENCES = [
    "\x1b[31m", "\x1b[8m", "\x1b[2J", "\x1b[3J", "\x1b[H", "\x1b[5A", "\x1b[9999B", "\x1b[?25l", "\x1b[?1049h", "\x1b[20h",
    "\x1b[3;5r", "\x1b[6n", "\x1b[c", "\x1b[?2004l", "\x1b[200~", "\x1b[201~", "\x1b]0;owned\x07", "\x1b]2;owned\x1b\\",
    "\x1b]52;c;b3duZWQ=\x07", "\x1b]8;;http://x\x07link\x1b]8;;\x07", "\x1b]4;1;?\x07", "\x1bPq#0;2;0;0;0\x1b\\",
    "\x1b_Gf=32;AAAA\x1b\\", "\x1bc", "\x1b7", "\x1bM", "\x1b(0", "\x1b#8", "\x1b%G", "\x1b",
]  # fmt: skip
_CONTROLS = [*"\x01\x05\x07\x08\x0b\x0c\x0e\x0f\x11\x13\x18\x1a\x7f", "\b\b\b", "gone\rback"]
_C1 = ["\x9b2J", "\x9d0;owned\x9c", "\x90q\x9c", "\x84\x85\x8d", "\x9b31m"]
_ORDER = [
    "\u202eexe.txt",
    "\u2066x\u2069",
    "\u202a\u202b\u202c\u202d",
    "\u200e",
    "\u200f",
    "\u061c",
    "\u2028\u2029",
]
_HIDDEN = [
    "\u200b",
    "x\u200cy\u200dz",
    "\u2060\ufeff",
    "\xad\u034f",
    "\U000e0041\U000e007f",
    "\u3164\u115f",
    "v1\ufe0f\U000e0101",
]

HOSTILE: list[str] = [*_SEQUENCES, *_CONTROLS, *_C1, *_ORDER, *_HIDDEN]
assert len(HOSTILE) == len(set(HOSTILE)) == 64

LEGIBLE = [
    "👩‍👩‍👧‍👦 family", "❤️‍🔥", "🏳️‍🌈", "👩🏽‍🚀", "©️", "🇩🇪", "שלום עולם", "مرحبا بالعالم", "می‌خواهم", "क्‍ष", "日本語 葛󠄀",
    "é e\u0301 naïve ﷽", "tab\there\n",
]  # fmt: skip
"""What has to reach the terminal as it is, pieces of one character each included."""

ALL = " ".join(f"({number}{text})" for number, text in enumerate(HOSTILE))
"""All of them in one text."""

_SGR = re.compile(r"\x1b\[[0-9;]*m")
_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0\u034f"


def found_in(printed: str, *, coloured: bool = False) -> str:
    """The characters of what was printed that no terminal may get; `coloured` lets colours pass."""
    text = _SGR.sub("", printed) if coloured else printed
    bad = [
        char
        for at, char in enumerate(text)
        if (unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\n\t\u200c\u200d")
        or char in _BLANK_LETTERS
        or (char in "\u200c\u200d\ufe0f\U000e0101" and (at == 0 or text[at - 1].isascii()))
    ]
    return "".join(bad)
