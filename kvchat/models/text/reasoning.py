"""How models mark the part of an answer that is not for the reader: a table, and what a template shows of others."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime

from kvchat.errors import TemplateRefusedError
from kvchat.models.text.template_language import APART_KEYS, TemplateProgram


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """`start` and `end` stand around the reasoning, which comes first; `lead` may begin what follows, `tail` end it.

    A model uses them if its template mentions `sign`, or its vocabulary has it as one token.
    """

    start: str
    end: str
    sign: str
    lead: str = ""
    tail: str = ""

    def is_frame(self, text: str) -> bool:
        """Whether `text` is all that stands between a reasoning and its answer."""
        rest = text.strip()
        return rest.startswith(self.end) and rest.removeprefix(self.end).strip() in ("", self.lead)


def _around(start: str, end: str, *, lead: str = "", tail: str = "", sign: str = "") -> ReasoningMarks:
    return ReasoningMarks(start, end, sign or end, lead, tail)


REASONING_MARKS = (
    _around("<think>", "</think>", lead="<answer>", tail="</answer>", sign="</answer>"),  # Hunyuan
    _around("<think>", "</think>", lead="<response>", tail="</response>", sign="</response>"),  # Granite 3.3
    _around("<think>", "</think>"),
    _around("<thinking>", "</thinking>"),
    _around("<thought>", "</thought>"),
    _around("<reasoning>", "</reasoning>"),
    _around("<seed:think>", "</seed:think>"),
    _around("<mm:think>", "</mm:think>"),  # MiniMax M3
    _around("[THINK]", "[/THINK]"),  # Ministral, Magistral
    _around("<|channel>thought", "<channel|>"),  # Gemma 4
    _around("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    _around(  # Cohere
        "<|START_THINKING|>", "<|END_THINKING|>", lead="<|START_RESPONSE|>", tail="<|END_RESPONSE|>"
    ),
    _around(  # Apriel: its prompt ends with the first
        "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", tail="[END FINAL RESPONSE]"
    ),
    _around("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    _around(  # Kimi K3
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|><|open|>response<|sep|>",
        lead="<|open|>response<|sep|>",
        tail="<|close|>response<|sep|>",
        sign="<|open|>",
    ),
    ReasoningMarks(  # harmony: channels are messages of their own
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        sign="<|channel|>analysis<|message|>",
        lead="<|channel|>final<|message|>",
    ),
)
"""The kinds that are known; of two that a template mentions, the first counts."""


def marks_in(source: str, control: Container[str]) -> ReasoningMarks | None:
    """The marks that a model uses, by its template's source and its control tokens; None for one that has none.

    A kind that the table does not know is found by showing the template an answer with reasoning.
    """
    known = (marks for marks in REASONING_MARKS if marks.sign in source or marks.sign in control)
    if found := next(known, None):
        return found
    cuts = [end for end in dict.fromkeys(_CUT.findall(source)) if end.replace("/", "", 1) in source]
    reads = _READS_REASONING.search(source)
    program = TemplateProgram(source) if cuts or reads else None
    return (_shown_by(program) if program and reads else None) or (
        _cut_off(program, cuts) if program else None
    )


_READS_REASONING = re.compile(rf"""[.'"]({"|".join(APART_KEYS)})\b""")
_CUT = re.compile(r"""split\(\s*['"](</[^<>\s'"]{1,40}>|\[/[^\[\]\s'"]{1,40}\])['"]""")
_TAG = re.compile(r"(<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\])$")
_LONGEST_MARK = 60
_THOUGHT, _ANSWER = "zqxthought", "zqxanswer"


def _shown_by(program: TemplateProgram) -> ReasoningMarks | None:
    """What a template writes around the reasoning of an answer."""
    for options in ({}, {"enable_thinking": True, "thinking": True}):
        asking = _said(program, answering=True, **options).removeprefix(_said(program, **options)).strip()
        before, thought, behind = _said(program, _answer(_THOUGHT), **options).partition(_THOUGHT)
        between, answered, _ = behind.partition(_ANSWER)
        if not (thought and answered):
            continue
        start, end = _mark_behind(asking, before.strip()), between.strip()
        if start and start != end and 0 < len(end) <= _LONGEST_MARK and "\n" not in end:
            plain = _said(program, _answer(""), **options).partition(_ANSWER)[0].strip()
            lead = "" if plain.endswith(asking) else _mark_behind(asking, plain)
            return _around(start, end, lead=lead if end.endswith(lead) else "")
    return None


def _cut_off(program: TemplateProgram, ends: Sequence[str]) -> ReasoningMarks | None:
    """The tags up to whose end a template cuts off what an answer begins with."""
    for end in ends:
        start = end.replace("/", "", 1)
        answer = {"role": "assistant", "content": f"{start}{_THOUGHT}{end}{_ANSWER}"}
        said = _said(program, answer, {"role": "user", "content": "b"})
        if _ANSWER in said and _THOUGHT not in said:
            return _around(start, end)
    return None


def _mark_behind(asking: str, text: str) -> str:
    """What stands at the end of `text` behind what asks for an answer; a tag where it does not stand there."""
    rest = text.rpartition(asking)[2].strip() if asking and asking in text else ""
    if not rest:
        tag = _TAG.search(text)
        rest = tag.group(1) if tag else ""
    return rest if len(rest) <= _LONGEST_MARK and "\n" not in rest else ""


def _answer(thought: str) -> dict[str, str]:
    return {"role": "assistant", "content": _ANSWER} | (dict.fromkeys(APART_KEYS, thought) if thought else {})


def _said(
    program: TemplateProgram, *answers: dict[str, str], answering: bool = False, **options: bool
) -> str:
    """The text of a question and what is answered; empty where that is refused."""
    names = {"bos_token": "", "eos_token": "", "add_generation_prompt": answering, **options}
    try:
        return program.render([{"role": "user", "content": "a"}, *answers], datetime.min, **names)
    except TemplateRefusedError:
        return ""
