"""Whatever a model writes, the terminal's state, title and clipboard stay as they were."""

import random
import re
from pathlib import Path

import pytest

from tests.ui.terminal import Terminal

FRAGMENTS = [
    *(bytes([code]) for code in range(0x20)),
    *(bytes([code]) for code in range(0x7F, 0x100)),
    *(f"\x1b{rest}".encode() for rest in ["c", "7", "8", "D", "E", "M", "=", ">", "(0", ")0", "#8", "%G", "N", "O", "P^", "X^", "^^", "_^"]),
    *(f"\x1b[{rest}".encode() for rest in ["2J", "3J", "H", "5A", "9999B", "?25l", "?1049h", "?1h", "4h", "20h", "3;5r", "31m", "8m", "6n", "c", "?2004l"]),
    *(f"\x1b]{rest}".encode() for rest in ("0;owned\x07", "2;owned\x1b\\", "52;c;b3duZWQ=\x07", "8;;http://x\x07", "4;1;?")),
    b"\xc2\x9b2J", b"\xc2\x9d0;owned\xc2\x9c", b"\x1bPq#0;2;0;0;0\x1b\\", b"\x1b_Gf=32;AAAA\x1b\\", b"\x1b[200~", b"\x1b[201~",
    *(text.encode() for text in ("日本語", "👩‍👩‍👧‍👦", "🇩🇪", "e\u0301\u0302\u0303", "\u202eabc", "\u2066x", "שלום", "\u200d\ufe0f", "\u2028", "\ufeff", "﷽")),
    *(text.encode() for text in ("word ", "`", "```\n", "- ", "| a |\n|---|\n", "# ", "\n", "\n\n", "> ", "1. ", "\t", "[x](\x1b]0;owned\x07)")),
]  # fmt: skip
SEQUENCE = re.compile(rb"\x1b(?:\[([?>]?)([0-9;]*)([@-~])|(.))", re.DOTALL)
OUR_MODES = {b"7", b"12", b"25", b"2004", b"2026", b"1"}


def fuzzed(seed: int) -> bytes:
    choice = random.Random(seed)
    return b"".join(choice.choice(FRAGMENTS) for _ in range(choice.randint(3, 40)))


def assert_is_harmless(raw: bytes) -> None:
    """Only sequences that this program makes itself: moving on the screen, erasing, colours, a few modes."""
    assert not re.search(rb"[\x00-\x06\x0b\x0c\x0e-\x1a\x1c-\x1f]", raw)
    assert not re.search(r"[\x80-\x9f]", raw.decode())
    for private, numbers, final, other in SEQUENCE.findall(raw):
        if other:
            assert other in b"78", f"ESC {other!r}"
        elif final in b"hl":
            assert private == b"?"
            assert set(numbers.split(b";")) <= OUR_MODES, numbers
        else:
            assert not private
            assert final in b"ABCDHJKm", final


@pytest.mark.parametrize("flags", [(), ("--markdown", "never")])
def test_two_hundred_hostile_answers_change_nothing(tmp_path: Path, flags: tuple[str, ...]) -> None:
    terminal = Terminal(tmp_path, *flags, columns=60).ready()
    modes = set(terminal.screen.mode)
    for batch in range(10):
        source = tmp_path / f"{batch}"
        source.write_bytes(b"\n\n".join(fuzzed(seed) for seed in range(10 * batch, 10 * batch + 10)))
        terminal.enter(f"file {source}")
        terminal.settle()
        assert terminal.screen.title == terminal.screen.icon_name == ""
        assert terminal.screen.margins is None
        assert terminal.is_cursor_shown
        assert set(terminal.screen.mode) == modes
    terminal.enter("sane again")
    terminal.wait_for("[21] you said: sane again")
    terminal.settle()
    assert "[21] you said: sane again" in terminal.rows
    terminal.leave()
    assert_is_harmless(terminal.raw)
    assert terminal.raw.count(b"\x1b[?2026h") == terminal.raw.count(b"\x1b[?2026l")
