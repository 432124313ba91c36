"""Turns -> prompt ids: the template's text encoded, and what the model generated put in as the very ids it generated.

The template renders with placeholders where ids are known already (answers, control tokens that a user typed); the
rendered text is cut at them, its pieces are encoded, and the known ids stand between. So a template that trims an
answer changes nothing, one that drops its reasoning keeps the rest, and nobody forges a control token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import datetime

from kvchat.errors import ModelUnavailableError
from kvchat.models.kv_state import common_prefix
from kvchat.models.reasoning import ReasoningMarks, marks_in
from kvchat.models.template_language import TemplateProgram
from kvchat.models.tokenizer import ChatTokenizer, joined

_OPEN, _CLOSE, _ANSWER = "\uf8fc\uf8fd\uf8fe"  # private use: brackets of a placeholder, sign of an answer's
_PLACEHOLDER = re.compile(f"{_OPEN}{_ANSWER}?(\\d+){_CLOSE}")
_APART_KEYS = ("thinking", "reasoning_content", "reasoning")
_THINK_NAMES = ("enable_thinking", "thinking")
_THINK_SETTING = re.compile(rf"(?<![\w.'\"])({'|'.join(_THINK_NAMES)})\b")  # not a message's own key
_PROBES = ("a", "-")
"""What a next message may begin with: two texts that share no beginning."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: `tokens` are an answer's exact ids (marks and reasoning included) if this tokenizer made them."""

    role: str
    text: str
    reasoning: str = ""
    tokens: Sequence[int] | None = None


@dataclass(slots=True)
class _Draft:
    """Rendered messages whose placeholders are numbered by `known`."""

    options: dict[str, bool]
    known: list[tuple[int, ...]] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    thoughts: list[tuple[int, int, tuple[int, ...]]] = field(
        default_factory=list
    )  # message, placeholder, all ids

    def hide(self, ids: Sequence[int], sign: str = "") -> str:
        self.known.append(tuple(ids))
        return f"{_OPEN}{sign}{len(self.known) - 1}{_CLOSE}"


class ChatTemplate:
    """A model's chat template over its tokenizer. The time that it may print is `now`, or that of its construction.

    Raises ModelUnavailableError when the template does not parse, and from `prompt` when it refuses the messages.
    """

    def __init__(self, source: str, tokenizer: ChatTokenizer, *, now: datetime | None = None) -> None:
        self.tokenizer = tokenizer
        self.marks: ReasoningMarks | None = marks_in(source, tokenizer.control)
        self.asks_for_thought = _THINK_SETTING.search(source) is not None
        self._now = now or datetime.now()
        self._program = TemplateProgram(source)
        self._header = ""  # of an answer, where the template has no generation prompt
        self._takes_system = self._shows_system()
        self._lead = self._find_lead()
        if self._lead.strip() and self._has_no_generation_prompt():
            self._header, self._lead = self._lead, ""
        self.closing_ids = self._find_closing()

    def at(self, time_s: float | None) -> ChatTemplate:
        """The same template at another time, in seconds since the epoch; None leaves it."""
        if time_s is None or not self._program.tells_time:
            return self
        other = copy(self)
        other._now = datetime.fromtimestamp(time_s)
        return other

    def prompt(
        self, messages: Sequence[Message], *, think: bool | None = None, answering: bool = True
    ) -> list[int]:
        """The ids of a conversation up to where the model answers; behind an unfinished answer, up to where it goes on.

        For messages without forged control tokens and without generated ids they are the ids of the rendered text.
        `think` asks for reasoning or for none, of templates that can; None leaves it to the template. Unless
        `answering` they end with the last message.
        """
        if answering and messages[-1].role == "assistant":
            return self.prompt(messages[:-1], think=think) + self.unfinished(messages)
        draft = self._draft(messages, think)
        rendered = self._restore_reasoning(draft, self._render(draft, answering=answering))
        if self._lead:
            rendered = rendered.replace(self._lead + _OPEN + _ANSWER, _OPEN + _ANSWER)
        return self._encode(rendered, draft)

    def unfinished(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the answer that the conversation ends with; none if it ends with a question."""
        last = messages[-1]
        if last.role != "assistant":
            return []
        return list(self.tokenizer.encode_as_text(last.text) if last.tokens is None else last.tokens)

    def next_prefix(self, messages: Sequence[Message], *, think: bool | None = None) -> list[int]:
        """What the prompt begins with whatever is said next; nothing if the template refuses that.

        A message of the user's that the conversation ends with is taken for the beginning of a longer one.
        """
        begun = messages[-1].text if messages and messages[-1].role == "user" else None
        said = messages if begun is None else messages[:-1]
        try:
            probes = [
                self.prompt([*said, Message("user", (begun or "") + text)], think=think) for text in _PROBES
            ]
        except ModelUnavailableError:
            return []
        return probes[0][: common_prefix(*probes)]

    def shared_tokens(self, messages: Sequence[Message], *, think: bool | None = None) -> int:
        """How many tokens of the prompt come before anything that the user says: the system prompt and its frame."""
        system = [message for message in messages[:1] if message.role == "system"]
        return len(self.next_prefix(system, think=think))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """The ids of an answer that another model gave, as this one would have generated them."""
        control = [found.end() for found in self.tokenizer.control_pattern.finditer(self._lead)]
        end = max(control, default=0)
        head = self.tokenizer.encode(self._lead[:end]) if end else ()
        return head + self.tokenizer.encode_as_text(self._lead[end:] + text)

    def opens_reasoning(self, messages: Sequence[Message], *, think: bool | None = None) -> bool:
        """Whether the prompt itself ends inside a reasoning part, as DeepSeek-R1's does."""
        if self.marks is None:
            return False
        asked = messages[:-1] if messages[-1].role == "assistant" else messages
        rendered = self._render(self._draft(asked, think)).rstrip()
        return rendered.endswith(self.marks.start) and not rendered.endswith(self.marks.end)

    def _draft(self, messages: Sequence[Message], think: bool | None = None) -> _Draft:
        draft = _Draft({} if think is None else dict.fromkeys(_THINK_NAMES, think))
        for message in messages if self._takes_system else _with_folded_system(messages):
            if message.tokens is None:
                parts = {"content": self._protect(message.text, draft)}
            else:
                parts = self._generated(message, draft)
            draft.messages.append({"role": message.role} | parts)
        return draft

    def _generated(self, message: Message, draft: _Draft) -> dict[str, str]:
        """The parts of an answer with ids: those of its reasoning apart, where it has some."""
        ids = tuple(message.tokens or ())
        marks = self.marks
        if marks is None or not (message.reasoning or self.tokenizer.control.get(marks.end) in ids):
            return {"content": draft.hide(ids, _ANSWER)}
        cut = self._end_of_reasoning(ids, marks.end)
        answer = ids[cut:]
        while answer and self.tokenizer.is_blank(answer[0]):
            answer = answer[1:]
        thought, shown = draft.hide(ids[:cut]), draft.hide(answer)
        draft.thoughts.append((len(draft.messages), len(draft.known) - 2, ids))
        if marks.is_apart:
            return {"content": shown} | dict.fromkeys(_APART_KEYS, thought)
        return {"content": f"{marks.start}{thought}{marks.end}{shown}"}

    def _end_of_reasoning(self, ids: Sequence[int], mark: str) -> int:
        single = self.tokenizer.control.get(mark)
        if single is not None and single in ids:
            return list(ids).index(single) + 1
        stream = self.tokenizer.stream()
        text = ""
        for count, token in enumerate(ids, 1):
            text += stream.push(token)
            if mark in text:
                return count
        return len(ids)

    def _protect(self, text: str, draft: _Draft) -> str:
        """`text`, or if there is a control token in it a placeholder that stands for its letters."""
        text = re.sub(f"[{_OPEN}{_CLOSE}{_ANSWER}]", "", text)
        return draft.hide(self.tokenizer.encode_as_text(text)) if self.tokenizer.has_control(text) else text

    def _render(self, draft: _Draft, *, count: int | None = None, answering: bool = True) -> str:
        """The text of the first `count` messages, with the generation prompt if `answering`."""
        names = {**self.tokenizer.names, **draft.options, "add_generation_prompt": answering}
        rendered = self._program.render(draft.messages[:count], self._now, **names)
        return rendered + self._header if answering else rendered

    def _restore_reasoning(self, draft: _Draft, rendered: str) -> str:
        """Where the template kept an answer's reasoning, its exact ids replace all that it wrote for the answer."""
        for index, thought, ids in draft.thoughts:
            mark, end = f"{_OPEN}{thought}{_CLOSE}", f"{_OPEN}{thought + 1}{_CLOSE}"
            if mark not in rendered or end not in rendered:
                continue
            header = self._render(draft, count=index)
            start = len(_shared(header, rendered))
            if start <= rendered.index(mark):
                rendered = rendered[:start] + draft.hide(ids) + rendered[rendered.index(end) + len(end) :]
        return rendered

    def _encode(self, rendered: str, draft: _Draft) -> list[int]:
        pieces = _PLACEHOLDER.split(rendered)  # text, number, text, number, …, text
        parts: list[Sequence[int]] = []
        for position, piece in enumerate(pieces):
            if position % 2:
                parts.append(draft.known[int(piece)])
            elif piece:
                parts.append(self.tokenizer.encode(piece, is_start=position == 0))
        return joined(parts)

    # What the template does, found out by asking it

    def _shows_system(self) -> bool:
        """Whether it takes a system message; some refuse it, some leave it out without a word."""
        sign = "zqx"
        draft = _Draft(
            {}, messages=[{"role": "system", "content": sign}, {"role": "user", "content": _PROBES[0]}]
        )
        try:
            return sign in self._render(draft)
        except ModelUnavailableError:
            return False

    def _find_lead(self) -> str:
        """What the template writes between its generation prompt and an answer, such as the space of `[/INST] yes`.

        The model generates that itself, so it is no part of the prompt where the answer's own ids stand.
        """
        draft = self._draft(
            [Message("user", "a"), Message("assistant", "b", tokens=()), Message("user", "c")]
        )
        try:
            header, rendered = self._render(draft, count=1), self._render(draft)
        except ModelUnavailableError:
            return ""
        found = _PLACEHOLDER.search(rendered)
        return rendered[len(header) : found.start()] if found and rendered.startswith(header) else ""

    def _has_no_generation_prompt(self) -> bool:
        draft = self._draft([Message("user", "a")])
        return self._render(draft) == self._render(draft, answering=False)

    def _find_closing(self) -> tuple[int, ...]:
        """The control tokens that stand right behind an answer: they end a turn whatever the model's settings say."""
        draft = self._draft([Message("user", "a"), Message("assistant", "b", tokens=())])
        try:
            behind = _PLACEHOLDER.split(self._render(draft, answering=False))[-1]
        except ModelUnavailableError:
            return ()
        ids = self.tokenizer.encode(behind.lstrip())[:1]
        return tuple(i for i in ids if i in self.tokenizer.control.values())


def _with_folded_system(messages: Sequence[Message]) -> Sequence[Message]:
    """The system text in front of the first message, for templates that know no system role."""
    if len(messages) < 2 or messages[0].role != "system":
        return messages
    system, first, *rest = messages
    return [replace(first, text=f"{system.text}\n\n{first.text}"), *rest]


def _shared(left: str, right: str) -> str:
    length = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
    return left[:length]
