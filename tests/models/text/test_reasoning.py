"""Marks of reasoning that no table knows are found in the template that writes them, or cuts them off."""

from __future__ import annotations

import pytest

from kvchat.models.text.reasoning import marks_in

PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASKING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def cutting(start: str, end: str, *, keeps: bool = False) -> str:
    """A template that asks for reasoning, and of what was said cuts it off, or keeps it."""
    last = "" if keeps else "{% set said = m.content.split('END')[-1] %}"
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set said = m.content %}{% if 'END' in said %}"
        "{% set parts = m.content.split('END') %}LAST{% endif %}{{ said }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\nSTART\n{% endif %}"
    )
    return source.replace("LAST", last).replace("START", start).replace("END", end)


@pytest.mark.parametrize("tag", ["cogitate", "R", "my:thoughts"])
def test_a_tag_up_to_which_a_template_cuts_off_what_was_said_marks_reasoning(tag: str) -> None:
    marks = marks_in(cutting(f"<{tag}>", f"</{tag}>"), ())
    assert marks is not None
    assert (marks.start, marks.end) == (f"<{tag}>", f"</{tag}>")
    brackets = marks_in(cutting("[PONDER]", "[/PONDER]"), ())
    assert brackets is not None
    assert brackets.end == "[/PONDER]"


def test_a_tag_at_which_a_template_cuts_but_drops_nothing_marks_none() -> None:
    assert marks_in(cutting("<tool_call>", "</tool_call>", keeps=True), ()) is None
    assert marks_in(PLAIN + ASKING, ()) is None
