"""Turns -> prompt ids: the template's text encoded, and what the model generated put in as the very ids it generated.

The template renders with placeholders where ids are known already (answers, control tokens that a user typed); the
rendered text is cut at them, its pieces are encoded, and the known ids stand between. So a template that trims an
answer changes nothing, one that drops its reasoning keeps the rest, and nobody forges a control token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from json import dumps
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvchat.errors import ModelUnavailableError
from kvchat.models.kv_state import common_prefix
from kvchat.models.tokenizer import ChatTokenizer, joined

_OPEN, _CLOSE, _ANSWER = (
    "\uf8fc",
    "\uf8fd",
    "\uf8fe",
)  # private use: brackets of a placeholder, sign of an answer's
_PLACEHOLDER = re.compile(f"{_OPEN}{_ANSWER}?(\\d+){_CLOSE}")

REASONING_MARKS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"))
"""How models mark the part of an answer that is not for the reader."""


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
    """A model's chat template over its tokenizer. The date it may print is that of its construction.

    Raises ModelUnavailableError when the template does not parse, and from `prompt` when it refuses the messages.
    """

    def __init__(self, source: str, tokenizer: ChatTokenizer, *, now: datetime | None = None) -> None:
        self.tokenizer = tokenizer
        self._now = now or datetime.now()
        self._environment = _environment(self._now)
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelUnavailableError(
                f"the chat template has an error: {error}", "give a working one with --chat-template"
            ) from error
        mentioned = [m for m in REASONING_MARKS if m[1] in source or m[1] in tokenizer.control]
        self.reasoning_marks: tuple[str, str] | None = mentioned[0] if mentioned else None
        self._lead = self._find_lead()
        self.closing_ids = self._find_closing()

    def prompt(self, messages: Sequence[Message], *, think: bool | None = None) -> list[int]:
        """The ids of a conversation up to where the model answers; behind an unfinished answer, up to where it goes on.

        For messages without forged control tokens and without generated ids they are the ids of the rendered text.
        `think` asks for reasoning or for none, of templates that can; None leaves it to the template.
        """
        if messages[-1].role == "assistant":
            return self.prompt(messages[:-1], think=think) + self.unfinished(messages)
        draft = self._draft(messages, think)
        rendered = self._restore_reasoning(draft, self._render(draft))
        if self._lead:
            rendered = rendered.replace(self._lead + _OPEN + _ANSWER, _OPEN + _ANSWER)
        return self._encode(rendered, draft)

    def unfinished(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the answer that the conversation ends with; none if it ends with a question."""
        last = messages[-1]
        if last.role != "assistant":
            return []
        return list(self.tokenizer.encode_as_text(last.text) if last.tokens is None else last.tokens)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """The ids of an answer that another model gave, as this one would have generated them."""
        return self.tokenizer.encode_as_text(self._lead + text)

    def shared_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens of the prompt come before anything that the user says: the system prompt and its frame."""
        head = [message for message in messages[:1] if message.role == "system"]
        try:
            probes = [self.prompt([*head, Message("user", text)]) for text in ("a", "-")]
        except ModelUnavailableError:
            return 0
        return common_prefix(*probes)

    def opens_reasoning(self, messages: Sequence[Message], *, think: bool | None = None) -> bool:
        """Whether the prompt itself ends inside a reasoning part, as DeepSeek-R1's does."""
        if self.reasoning_marks is None:
            return False
        asked = messages[:-1] if messages[-1].role == "assistant" else messages
        rendered = self._render(self._draft(asked, think))
        start, end = self.reasoning_marks
        return rendered.rstrip().endswith(start) and not rendered.rstrip().endswith(end)

    def _draft(self, messages: Sequence[Message], think: bool | None = None) -> _Draft:
        draft = _Draft({} if think is None else {"enable_thinking": think})
        for index, message in enumerate(messages):
            if message.tokens is None:
                content = self._protect(message.text, draft)
            else:
                content = self._generated(index, message, draft)
            draft.messages.append({"role": message.role, "content": content})
        return draft

    def _generated(self, index: int, message: Message, draft: _Draft) -> str:
        ids = tuple(message.tokens or ())
        if not message.reasoning or self.reasoning_marks is None:
            return draft.hide(ids, _ANSWER)
        start, end = self.reasoning_marks
        cut = self._end_of_reasoning(ids, end)
        answer = ids[cut:]
        while answer and self.tokenizer.is_blank(answer[0]):
            answer = answer[1:]
        thought = draft.hide(ids[:cut])
        shown = draft.hide(answer)
        draft.thoughts.append((index, len(draft.known) - 2, ids))
        return f"{start}{thought}{end}{shown}"

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
        """`text` with every control token in it behind a placeholder that stands for its letters."""
        brackets = re.sub(f"[{_OPEN}{_CLOSE}{_ANSWER}]", "", text)
        return self.tokenizer.control_pattern.sub(
            lambda found: draft.hide(self.tokenizer.encode_as_text(found[0])), brackets
        )

    def _render(self, draft: _Draft, *, count: int | None = None, answering: bool = True) -> str:
        """The text of the first `count` messages, with the generation prompt if `answering`."""
        messages = draft.messages[:count]
        try:
            return self._render_as_is(messages, draft.options, answering)
        except jinja2.TemplateError as error:
            if len(messages) > 1 and messages[0]["role"] == "system":
                folded = _Draft(draft.options, messages=_fold_system(messages))
                return self._render(folded, answering=answering)
            raise ModelUnavailableError(
                f"the chat template refuses this conversation: {error}", "try --chat-template"
            ) from error
        except Exception as error:  # whatever a template's own expressions run into
            raise ModelUnavailableError(f"the chat template fails: {error}", "try --chat-template") from error

    def _render_as_is(self, messages: list[dict[str, str]], options: dict[str, bool], answering: bool) -> str:
        names: dict[str, Any] = self.tokenizer.names | options
        return self._template.render(
            messages=messages, add_generation_prompt=answering, tools=None, documents=None, **names
        )

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

    def _find_closing(self) -> tuple[int, ...]:
        """The control tokens that stand right behind an answer: they end a turn whatever the model's settings say."""
        draft = self._draft([Message("user", "a"), Message("assistant", "b", tokens=())])
        try:
            behind = _PLACEHOLDER.split(self._render(draft, answering=False))[-1]
        except ModelUnavailableError:
            return ()
        ids = self.tokenizer.encode(behind.lstrip())[:1]
        return tuple(i for i in ids if i in self.tokenizer.control.values())


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks answers for training; here its body is just printed."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: datetime) -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it (transformers' conventions), in its sandbox, with the clock stopped."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: dumps(
        value, **({"ensure_ascii": False} | options)
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment


def _fold_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The system text in front of the first message, for templates that know no system role."""
    system, first, *rest = messages
    return [first | {"content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _shared(left: str, right: str) -> str:
    length = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
    return left[:length]
