"""One message after the other as a template takes it: its text, and placeholders where ids are known. Renders nothing."""

from __future__ import annotations

import json
from functools import lru_cache, partial

from kvchat.models.kinds import as_generated
from kvchat.models.text.parts import parted
from kvchat.models.text.reasoning import ReasoningMarks
from kvchat.models.text.template_input import (
    Message,
    TemplateInput,
    Thought,
    Trace,
    placeholder,
    without_placeholders,
)
from kvchat.models.text.template_language import APART_KEYS
from kvchat.models.text.template_traits import Form, Place, Traits, content_as
from kvchat.models.text.tokenizer import ChatTokenizer


class MessageReader:
    """Reads messages for one template, whose `traits` say in which form it wants them."""

    def __init__(self, tokenizer: ChatTokenizer, traits: Traits) -> None:
        self._tokenizer = tokenizer
        self._traits = traits
        self._parted = lru_cache(maxsize=1024)(partial(parted, tokenizer))

    def add(self, message: Message, given: TemplateInput) -> None:
        """Let a message follow those that are given already."""
        if message.tokens is None:
            parts = {"content": self._protected(message, given)}
            parts |= json.loads(message.extra) if message.extra else {}
        else:
            parts = self._generated(message, tuple(message.tokens), given)
        parts["content"] = content_as(self._traits.forms.get(message.role, Form.TEXT), parts["content"])
        given.messages.append({"role": message.role, **parts})
        given.sizes.append(len(given.known))

    def _protected(self, message: Message, given: TemplateInput) -> str:
        """A message's text, or if there is a control token in it a placeholder that stands for its letters."""
        text, is_ordered = without_placeholders(message.text), message.role != "system"
        if not self._tokenizer.has_control(text):
            given.traces.append(Trace(text.strip(), is_ordered))
            return text
        number = given.hide(self._tokenizer.encode_as_text(text))
        given.traces.append(Trace(number, is_ordered))
        return placeholder(number)

    def _generated(self, message: Message, ids: tuple[int, ...], given: TemplateInput) -> dict[str, str]:
        """The parts of an answer with ids: those of its reasoning apart, where it has some."""
        marks = self._traits.marks
        if marks is None or not (message.reasoning or self._tokenizer.control.get(marks.end) in ids):
            number = given.hide(as_generated(ids))
            given.answers.add(number)
            given.traces.append(Trace(number))
            return {"content": placeholder(number)}
        words, answer, is_opened = self._parted(ids, marks)
        thought, shown = given.hide(self._tokenizer.encode_as_text(words)), given.hide(answer)
        given.thoughts.append(Thought(len(given.messages), thought, shown, ids, is_opened))
        given.traces.append(Trace(shown))
        return self._placed(marks, placeholder(thought), placeholder(shown))

    def _placed(self, marks: ReasoningMarks, thought: str, shown: str) -> dict[str, str]:
        """An answer's content and its reasoning, where this template looks for it."""
        if self._traits.place is Place.APART:
            return {"content": shown} | dict.fromkeys(APART_KEYS, thought)
        return {"content": f"{marks.start}{thought}{marks.end}{shown}" if self._traits.place else shown}
