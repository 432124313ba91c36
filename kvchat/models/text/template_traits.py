"""What a chat template makes of a conversation, found out by holding short ones with it at load. Knows no token ids."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from kvchat.errors import ModelUnavailableError, TemplateRefusedError
from kvchat.models.text.reasoning import ReasoningMarks, marks_in
from kvchat.models.text.template_input import placeholder
from kvchat.models.text.template_language import APART_KEYS, TemplateProgram

THINK_NAMES = ("enable_thinking", "thinking")
_THINK_SETTING = re.compile(rf"(?<![\w.'\"])({'|'.join(THINK_NAMES)})\b")  # not a message's own key
_SIGN, _SHOWN, _THOUGHT = "zqx", placeholder(0), placeholder(1)


class Form(StrEnum):
    """What a template takes for a message's content: its text, or a list of parts."""

    TEXT = "text"
    PARTS = "parts"


class Place(StrEnum):
    """Where a template looks for the reasoning of a past answer: beside the content, in it, or nowhere."""

    APART = "apart"
    WITHIN = "within"
    NOWHERE = ""


def content_as(form: Form, text: str) -> Any:
    """A text as the content of a message."""
    return text if form is Form.TEXT else [{"type": "text", "text": text}]


@dataclass(frozen=True, slots=True)
class Traits:
    """What was found out.

    `header` begins an answer where the template has no generation prompt; `lead` is what it writes between its
    generation prompt and an answer, which the model generates itself. `asking` is the generation prompt up to any mark
    of reasoning, `opening` the rest of one that opens the reasoning.
    """

    marks: ReasoningMarks | None
    asks_for_thought: bool
    takes_system: bool = False
    forms: Mapping[str, Form] = field(default_factory=dict)
    place: Place = Place.NOWHERE
    header: str = ""
    lead: str = ""
    asking: str = ""
    opening: str = ""

    def before_ids(self, text: str, *, is_opened: bool) -> str | None:
        """What stands before an answer's exact ids, where `text` stands before its reasoning in the template's frame.

        It ends as the prompt did behind which the answer was generated; None where the frame is not known.
        """
        assert self.marks is not None
        stem = text.rstrip()
        head = stem.removesuffix(self.marks.start)
        bare, asking = head.rstrip(), self.asking.rstrip()
        if head == stem or not bare.endswith(asking):
            return None
        head = bare.removesuffix(asking) + self.asking if asking else head
        return head if is_opened else head + self.opening


def traits_of(
    source: str, control: Container[str], program: TemplateProgram, names: Mapping[str, str]
) -> Traits:
    """What a template does. Raises ModelUnavailableError for one that leaves out what the user says."""
    asked = _Asked(program, names, marks_in(source, control), _THINK_SETTING.search(source) is not None)
    asked.find_forms()
    header, lead = "", asked.lead()
    if lead.strip() and not asked.generation_prompt():
        header, lead = lead, ""
    if asked.marks is not None and asked.marks.end in lead and asked.marks.start not in lead:
        lead = ""  # it ends what only a prompt that asks for reasoning begins
    asking, opening = asked.generation_parts(header)
    found = Traits(
        asked.marks,
        asked.is_switched,
        asked.takes_system,
        asked.forms,
        Place.NOWHERE,
        header,
        lead,
        asking,
        opening,
    )
    return asked.placed(found)


class _Asked:
    """Short conversations with one template."""

    def __init__(
        self,
        program: TemplateProgram,
        names: Mapping[str, str],
        marks: ReasoningMarks | None,
        is_switched: bool,
    ) -> None:
        self._program, self._names = program, names
        self.marks, self.is_switched = marks, is_switched
        self.forms: dict[str, Form] = {}
        self.takes_system = False

    def _said(
        self,
        *messages: tuple[str, str],
        answering: bool = True,
        think: bool | None = None,
        apart: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """The text of a conversation; `apart` goes beside the content of what the model said. Empty if it is refused."""
        options = {} if think is None else dict.fromkeys(THINK_NAMES, think)
        given = [
            {"role": role, "content": content_as(self.forms.get(role, Form.TEXT), text)}
            | (dict(apart) if role == "assistant" else {})
            for role, text in messages
        ]
        names = {**self._names, **options, "add_generation_prompt": answering}
        try:
            return self._program.render(given, datetime.min, **names)
        except TemplateRefusedError:
            return ""

    def find_forms(self) -> None:
        """In which form it takes what each role says. Raises ModelUnavailableError if it takes none of the user's."""
        if not self._shows("user", ("user", _SIGN)) and self._said(("user", _SIGN)):
            raise ModelUnavailableError(
                "the chat template leaves out what the user says", "give another one with --chat-template"
            )
        self._shows("assistant", ("user", "a"), ("assistant", _SIGN), ("user", "b"))
        self.takes_system = self._shows("system", ("system", _SIGN), ("user", "a"))

    def _shows(self, role: str, *messages: tuple[str, str]) -> bool:
        """Whether what `role` says stands in the text, as a text or as a list of parts."""
        for form in Form:
            self.forms[role] = form
            if _SIGN in self._said(*messages):
                return True
        self.forms[role] = Form.TEXT
        return False

    def lead(self) -> str:
        """What the template writes between its generation prompt and an answer, such as the space of `[/INST] yes`."""
        header = self._said(("user", "a"))
        rendered = self._said(("user", "a"), ("assistant", _SHOWN), ("user", "c"))
        place = rendered.find(_SHOWN)
        return rendered[len(header) : place] if place >= 0 and rendered.startswith(header) else ""

    def generation_prompt(self, think: bool | None = None) -> str:
        """What asks for an answer."""
        question = ("user", "a")
        before = self._said(question, answering=False, think=think)
        whole = self._said(question, think=think)
        return whole.removeprefix(before) if before else ""

    def generation_parts(self, header: str) -> tuple[str, str]:
        """Its generation prompt up to any mark of reasoning, and the rest of one that opens the reasoning."""
        if self.marks is None:
            return "", ""
        always = self._said(("user", _SIGN)).partition(_SIGN)[
            2
        ]  # some write it whether or not they are asked to
        prompts = [self.generation_prompt(think) or header or always for think in (None, True)]
        cuts = [prompt.find(mark) for prompt in prompts[:1] for mark in (self.marks.start, self.marks.end)]
        asking = prompts[0][: min((cut for cut in cuts if cut >= 0), default=None)]
        opening = [prompt for prompt in prompts if prompt.rstrip().endswith(self.marks.start)]
        return asking, opening[0][opening[0].rfind(self.marks.start) :] if opening else ""

    def placed(self, found: Traits) -> Traits:
        """With the place where it looks for reasoning: the first where what comes of it can be told from the answer."""
        if self.marks is None:
            return found
        beside = dict.fromkeys(APART_KEYS, _THOUGHT)
        if any(_THOUGHT in text for text in self._answered(_SHOWN, beside)):
            return replace(found, place=Place.APART)
        kept = self._answered(f"{self.marks.start}{_THOUGHT}{self.marks.end}{_SHOWN}")
        is_known = [self._is_frame(found, text) for text in kept if _THOUGHT in text]
        if any(_SHOWN in text for text in kept) and all(is_known):
            return replace(found, place=Place.WITHIN)
        return found

    def _answered(self, content: str, apart: Mapping[str, str] = MappingProxyType({})) -> list[str]:
        """The texts of an answer at the end of a conversation and before another question, with reasoning and without."""
        switches = (None, True) if self.is_switched else (None,)
        begun = ("user", "a"), ("assistant", content)
        return [
            text
            for think in switches
            for text in (
                self._said(*begun, answering=False, think=think, apart=apart),
                self._said(*begun, ("user", "b"), think=think, apart=apart),
            )
        ]

    def _is_frame(self, found: Traits, text: str) -> bool:
        assert self.marks is not None
        before, _, behind = text.partition(_THOUGHT)
        between, _, _ = behind.partition(_SHOWN)
        return self.marks.is_frame(between) and found.before_ids(before, is_opened=True) is not None
