"""What of a growing answer is finished, and what is its live tail."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvchat.backends.base import Prefilling, Text
from kvchat.ui.answer import AnswerView, PlainBlocks, last_rows
from kvchat.ui.markdown import MarkdownBlocks

DOCUMENT = """# Title

Some *text* on
two lines.

- one
- two

  inner paragraph

- three

| a | b |
|---|---|
| 1 | 2 |

```python
def f():

    return 1
```

1. first

2. second

> quoted
> more

<b>html</b> stays

last"""


def fed(text: str, size: int, view: AnswerView) -> str:
    printed = []
    for start in range(0, len(text), size):
        view.take(Text(text[start : start + size]))
        printed.append(view.finished(80))
    printed.append(view.finished(80, whole=True))
    return "\n".join(piece for piece in printed if piece)


def markdown() -> AnswerView:
    return AnswerView(MarkdownBlocks(color=False))


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_a_rendered_answer_does_not_depend_on_how_it_came(size: int) -> None:
    assert fed(DOCUMENT, size, markdown()) == fed(DOCUMENT, 1, markdown())


def test_a_rendered_answer_keeps_every_word() -> None:
    shown = fed(DOCUMENT, 5, markdown())
    for word in (
        "Title",
        "two lines.",
        "inner paragraph",
        "three",
        "return 1",
        "second",
        "more",
        "<b>html</b>",
        "last",
    ):
        assert word in shown


def test_a_line_break_that_was_written_is_a_line_break() -> None:
    assert fed("roses are red\nviolets are blue", 3, markdown()) == "roses are red\nviolets are blue"


def test_no_rendered_line_ends_in_blanks() -> None:
    shown = fed(DOCUMENT, 5, markdown())
    assert [line for line in shown.split("\n") if line.rstrip() != line] == []


def test_code_longer_than_the_screen_is_not_broken() -> None:
    line = "x = " + " + ".join(str(n) for n in range(60))
    assert line in fed(f"```\n{line}\n```\n\nend", 9, markdown())


@given(st.text(alphabet=st.sampled_from(list("ab \n`*-#>|1.\t\x1b日")), max_size=80), st.integers(1, 9))
def test_plain_text_comes_out_whole_whatever_its_pieces(text: str, size: int) -> None:
    shown = fed(text, size, AnswerView(PlainBlocks()))
    expected = text.replace("\x1b", "␛")
    assert shown.strip("\n") == expected.strip("\n")


@given(st.text(alphabet=st.sampled_from(list("ab \n`*-#>|1.\t日[]()<_~")), max_size=120))
def test_no_text_breaks_the_renderer(text: str) -> None:
    shown = fed(text, 3, markdown())
    for char in "ab日":
        assert shown.count(char) >= min(1, text.count(char)) or "](" in text or "`" in text


@given(st.text(alphabet="ab\t日é\n", max_size=200), st.integers(2, 30), st.integers(1, 6))
@example("\ta日", 2, 1)
def test_the_tail_never_passes_its_rows_or_the_screen(text: str, columns: int, num_rows: int) -> None:
    rows = last_rows(text, columns, num_rows)
    assert len(rows) <= num_rows
    assert all(sum(2 if char == "日" else 1 for char in row) <= columns for row in rows)


def test_the_tail_shows_prefill_then_text() -> None:
    view = AnswerView(PlainBlocks())
    view.take(Prefilling(0, 1800, 100))
    view.take(Prefilling(512, 1800, 100))
    assert "512/1800" in view.tail(80, 20).rows[0]
    assert len(view.tail(20, 20).rows[0]) < 20
    view.take(Text("hello"))
    assert view.tail(80, 20).rows == ["hello"]
    assert view.finished(80, whole=True) == "hello"
    assert view.tail(80, 20).rows == []


@pytest.mark.parametrize("size", [1, 3, 100])
def test_code_without_a_fence_keeps_its_indentation(size: int) -> None:
    code = "def f(x):\n    if x:\n        return 1\n    return 2\n\n    more = 3"
    assert fed(f"Like this:\n\n{code}\n\nend", size, markdown()) == f"Like this:\n\n{code}\n\nend"


@pytest.mark.parametrize(
    "maths", [r"\(x_1^2 + \frac{a}{b}\)", r"\[a*b*c\]", r"$$\sum_i *x* \\ y$$", r"$a*b*c$", r"$\alpha$"]
)
def test_maths_is_shown_as_it_was_written(maths: str) -> None:
    assert fed(f"so {maths} holds", 3, markdown()) == f"so {maths} holds"


def test_money_is_no_maths() -> None:
    assert fed("it costs $5 and \\* not $6", 3, markdown()) == "it costs $5 and * not $6"


def test_a_table_shows_its_head_and_rows_before_it_is_finished() -> None:
    view = markdown()
    for piece in ("| fruit | colour |\n", "|---|---|\n", "| apple | red |\n", "| pear | gre"):
        view.take(Text(piece))
        assert view.finished(60) == ""
    rows = [row.strip() for row in view.tail(60, 20).rows if row.strip()]
    assert rows[0].split() == ["fruit", "colour"]
    assert rows[-1].split()[:2] == ["apple", "red"]
    assert len(view.tail(60, 2).rows) == 2


def test_the_tail_takes_the_rows_that_it_is_given() -> None:
    view = AnswerView(PlainBlocks())
    view.take(Text("word " * 200))
    assert len(view.tail(20, 30).rows) == 30
    assert len(view.tail(20, 5).rows) == 5
