"""Large pastes in the input: one mark each, which can be opened or taken back, and all of it is sent."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kvchat.ui.pastes import Pastes
from tests.ui.terminal import Terminal

LONG = "\n".join(f"pasted line {n}" for n in range(200))
TEXTS = st.one_of(st.text(), st.integers(1, 40).map(lambda n: "a\n" * n), st.just("x" * 2000))


@given(st.lists(TEXTS, max_size=5), st.text())
def test_what_marks_stand_for_is_sent_and_what_is_sent_is_folded_into_them(
    texts: list[str], typed: str
) -> None:
    pastes = Pastes()
    shown = typed + "".join(pastes.taken(text) for text in texts)
    whole = typed + "".join(texts)
    assert pastes.opened(shown) == whole
    assert pastes.opened(pastes.folded(whole)) == whole
    assert shown.endswith(pastes.mark_before(shown))


def test_a_short_paste_is_text_like_any_other_and_a_mark_that_was_typed_is_too() -> None:
    pastes = Pastes()
    assert pastes.taken("two\nlines") == "two\nlines"
    assert pastes.opened("[pasted 200 lines #1]") == "[pasted 200 lines #1]"
    assert pastes.mark_before("see [pasted 200 lines #1]") == ""
    assert pastes.taken(LONG) == "[pasted 200 lines #1]"
    assert pastes.taken("x" * 2000) == "[pasted 2000 characters #2]"
    assert pastes.mark_before("see [pasted 200 lines #1]") == "[pasted 200 lines #1]"


def test_a_large_paste_is_one_mark_on_the_screen_and_one_message(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path).ready()
    terminal.type("look: ")
    terminal.paste(LONG)
    terminal.wait_for("> look: [pasted 200 lines #1]")
    terminal.wait_for("Tab opens what was pasted, Backspace takes it back")
    terminal.type("\r")
    terminal.wait_for("[1] you said: look: pasted line 0")
    terminal.settle()
    rows = [row.strip() for row in terminal.rows]
    assert rows.count("> look: [pasted 200 lines #1]") == 1
    for n in range(1, 200):
        assert rows.count(f"pasted line {n}") == 1, "it is in the answer alone"
    terminal.leave()


def test_backspace_takes_a_paste_back_and_tab_opens_it(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, rows=40).ready()
    terminal.paste(LONG)
    terminal.wait_for("> [pasted 200 lines #1]")
    terminal.type("\x7f")
    terminal.until(
        lambda: terminal.visible[-2].rstrip() in (">", "> ask something, or type / for commands"),
        "an empty input",
    )
    terminal.paste("\n".join(f"row {n}" for n in range(12)))
    terminal.wait_for("> [pasted 12 lines #2]")
    terminal.type("\t")
    terminal.until(
        lambda: "> row 0" in terminal.visible and "  row 11" in terminal.visible, "the opened paste"
    )
    terminal.type("\x03")
    terminal.leave()


def test_a_pasted_path_is_no_command_and_keeps_its_slash(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path).ready()
    terminal.paste("/etc/hosts\n" * 12)
    terminal.type("\r")
    terminal.wait_for("[1] you said: /etc/hosts")
    terminal.leave()


def test_what_could_not_be_sent_comes_back_as_its_mark(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path).ready()
    terminal.type("overflow ")
    terminal.paste(LONG)
    terminal.type("\r")
    terminal.wait_for("do not fit")
    terminal.until(
        lambda: terminal.visible[-2] == "> overflow [pasted 200 lines #1]", "the mark in the input"
    )
    terminal.type("\x03")
    terminal.leave()


def test_what_is_attached_is_shown_by_tab_and_taken_back_by_backspace(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("remember the milk")
    terminal = Terminal(tmp_path).ready()
    terminal.enter(f"/read {tmp_path / 'notes.txt'}")
    terminal.wait_for("with the next message: ")
    terminal.type("\t")
    terminal.wait_for("remember the milk")
    terminal.type("\x7f")
    terminal.wait_for("stays here")
    terminal.until(
        lambda: not any(row.startswith("with the next") for row in terminal.visible), "nothing to go along"
    )
    terminal.enter("hello")
    terminal.wait_for("[1] you said: hello")
    terminal.settle()
    assert "\n".join(terminal.rows).count("remember the milk") == 1
    terminal.leave()
