"""A long Markdown answer in the dialogue ends up as the same rows that it has when it is rendered in one go."""

from pathlib import Path

import pytest

from tests.ui.terminal import Terminal

COLUMNS_OF_THE_NARROWEST = 40


def document(*, wide: bool) -> str:
    """About 300 lines of every kind of block; unless `wide`, none is wider than the narrowest screen."""
    long = " and so on, and on" * 6 if wide else ""
    parts = []
    for n in range(12):
        parts.append(f"## Chapter {n}")
        parts.append(f"Some *text* of chapter {n}{long}\nand **more** of it.")
        parts.append(f"- item {n}a{long}\n- item {n}b\n  - inner {n}\n    1. deep {n}\n- item {n}c")
        parts.append(f"| key {n} | value |\n|:---|---:|\n| 日本 {n} | é |\n| x | ``y`` {n}{long} |")
        parts.append(
            f"```python\ndef f{n}():\n\n    '''Doc {n}.\n\n    More.'''\n    return {n}{' + 1' * 30 * wide}\n```"
        )
        parts.append(f"1. first {n}\n2. second {n}\n3. third {n}")
        parts.append(f"> quoted {n}\n> again")
    parts.append("👩‍👩‍👧 שלום 日本語 end")
    return "\n\n".join(parts)


def in_one_go(folder: Path, path: Path, columns: int, rows: int) -> list[str]:
    """The rows of a one-shot rendering in a terminal of that size."""
    argv = ("--markdown", "always", "-q", "-p", f"file {path}")
    terminal = Terminal(folder, *argv, columns=columns, rows=rows)
    assert terminal.end() == 0
    return [row for row in terminal.rows if row != "^D"]


def in_the_dialogue(terminal: Terminal, source: Path) -> list[str]:
    """The rows of the answer to `file SOURCE`, which was just sent."""
    terminal.settle()
    terminal.leave()
    assert terminal.is_cursor_shown
    rows = terminal.rows
    (first,) = (number for number, row in enumerate(rows) if row.startswith("> file "))
    last = next(number for number, row in enumerate(rows) if row.startswith("cached "))
    echoed = 1 + (len(f"> file {source}") - 1) // terminal.screen.columns
    return rows[first + echoed : last]


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), pytest.param(40, 20, marks=pytest.mark.slow)])
def test_the_scrollback_equals_the_rendering_in_one_go(tmp_path: Path, columns: int, rows: int) -> None:
    source = tmp_path / "a"
    source.write_text(document(wide=True))
    expected = in_one_go(tmp_path, source, columns, rows)
    assert len(document(wide=True).split("\n")) > 300
    assert len(expected) > 250
    terminal = Terminal(tmp_path, columns=columns, rows=rows).ready()
    terminal.enter(f"file {source}")
    assert in_the_dialogue(terminal, source) == expected


def test_a_resize_in_the_middle_loses_no_row_and_repeats_none(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_text(document(wide=False))
    expected = in_one_go(tmp_path, source, COLUMNS_OF_THE_NARROWEST, 20)
    hold = tmp_path / "a.hold"
    hold.write_text("Chapter 6")  # nothing is being drawn for one size while the terminal takes another
    terminal = Terminal(tmp_path, columns=80, rows=24).ready()
    terminal.enter(f"file {source}")
    terminal.wait_for("quoted 5")
    for columns in range(79, 71, -1):  # as somebody drags the window's edge
        terminal.resize(columns, 24)
    terminal.resize(COLUMNS_OF_THE_NARROWEST, 20)
    hold.write_text("Chapter 9")
    terminal.wait_for("quoted 8")
    terminal.resize(80, 24)
    assert b"cached " not in terminal.raw, "the answer was over too early"
    hold.unlink()
    assert in_the_dialogue(terminal, source) == expected
