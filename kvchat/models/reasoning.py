"""How models mark the part of an answer that is not for the reader: a table. Knows no tokenizer and no template."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """`start` and `end` stand around the reasoning, which comes first; `lead` begins an answer that has none.

    A model uses them if its template mentions `sign`, or its vocabulary has it as one token. Where it `is_apart`, the
    template takes the reasoning beside the answer's text, not in it.
    """

    start: str
    end: str
    sign: str
    lead: str = ""
    is_apart: bool = False


def _around(start: str, end: str) -> ReasoningMarks:
    return ReasoningMarks(start, end, sign=end)


REASONING_MARKS = (
    _around("<think>", "</think>"),
    _around("<thinking>", "</thinking>"),
    _around("<reasoning>", "</reasoning>"),
    _around("<seed:think>", "</seed:think>"),
    _around("[THINK]", "[/THINK]"),
    ReasoningMarks(  # harmony: channels are messages of their own
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        sign="<|channel|>analysis<|message|>",
        lead="<|channel|>final<|message|>",
        is_apart=True,
    ),
)
"""The kinds that are known."""


def marks_in(source: str, control: Container[str]) -> ReasoningMarks | None:
    """The marks that a model uses, by its template's source and its control tokens; None for one that has none."""
    return next((marks for marks in REASONING_MARKS if marks.sign in source or marks.sign in control), None)
