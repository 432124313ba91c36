"""Turns -> prompt ids: the template's text encoded, and what the model generated put in as the very ids it generated.

The template renders with placeholders where ids are known already (answers, control tokens that a user typed); the
rendered text is cut at them, its pieces are encoded, and the known ids stand between. So a template that trims an
answer changes nothing, one that drops its reasoning keeps the rest, and nobody forges a control token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from datetime import datetime
from typing import Any

from kvchat.cache.block import common_prefix
from kvchat.errors import TemplateRefusedError
from kvchat.models.kinds import as_generated, ids_of
from kvchat.models.text.growing import Framing, GrowingPrompts
from kvchat.models.text.message_reader import MessageReader
from kvchat.models.text.parts import MANY_PARTS, PartsEncoder, num_same
from kvchat.models.text.reasoning import ReasoningMarks
from kvchat.models.text.template_input import (
    Message,
    Rendering,
    TemplateInput,
    Trace,
    with_folded_system,
)
from kvchat.models.text.template_language import TemplateProgram
from kvchat.models.text.template_traits import THINK_NAMES, Traits, traits_of
from kvchat.models.text.tokenizer import ChatTokenizer

__all__ = ["ChatTemplate", "Message"]

_PROBES = ("a", "-")
"""What a next message may begin with: two texts that share no beginning."""
_BREAKS_UP = "the chat template breaks up what was said, so that the past is given to it as plain text"
_LEAVES_OUT = "the chat template leaves out or changes {} of {} messages"


def _unheard(notice: str) -> None:
    """Nobody listens."""


class ChatTemplate:
    """A model's chat template over its tokenizer. The time that it may print is `now`, or that of its construction.

    `notify` is told, once for each kind of fault, what a user ought to know of the prompts that are built.

    Raises ModelUnavailableError when the template does not parse, leaves out what the user says or asks for too much
    time or memory, and from `prompt` when it refuses the messages.
    """

    def __init__(
        self,
        source: str,
        tokenizer: ChatTokenizer,
        *,
        now: datetime | None = None,
        notify: Callable[[str], None] = _unheard,
    ) -> None:
        self.tokenizer = tokenizer
        self._now = now or datetime.now()
        self._program = TemplateProgram(source)
        self._notify = notify
        self._said: set[str] = set()
        self._encoder = PartsEncoder(tokenizer)
        self._said_before: list[Message] = []
        self._input_before = TemplateInput({})
        self._tools: Any = None
        self._traits: Traits = traits_of(source, tokenizer.control, self._program, tokenizer.names)
        self._reader = MessageReader(tokenizer, self._traits)
        self.growing = GrowingPrompts(self._program, self._reader, tokenizer)
        self.closing_ids = self._find_closing()

    @property
    def marks(self) -> ReasoningMarks | None:
        """What stands around the reasoning of its answers."""
        return self._traits.marks

    @property
    def asks_for_thought(self) -> bool:
        """Whether it can be asked for reasoning, or for none."""
        return self._traits.asks_for_thought

    def at(self, time_s: float | None) -> ChatTemplate:
        """The same template at another time, in seconds since the epoch; None leaves it."""
        if time_s is None or not self._program.tells_time:
            return self
        other = copy(self)
        other._now = datetime.fromtimestamp(time_s)
        return other

    def unheard(self) -> ChatTemplate:
        """The same template for conversations that nobody holds: it tells nobody what it does to them."""
        other = copy(self)
        other._notify, other._said = _unheard, set()
        return other

    @property
    def takes_tools(self) -> bool:
        """Whether it tells the model which tools there are."""
        return self._program.reads_tools

    def with_tools(self, tools: str) -> ChatTemplate:
        """The same template in a conversation whose model may call `tools`, a list as JSON."""
        other = copy(self)
        other._tools = json.loads(tools)
        return other

    def prompt(
        self, messages: Sequence[Message], *, think: bool | None = None, answering: bool = True
    ) -> list[int]:
        """The ids of a conversation's `tokens`."""
        return ids_of(self.tokens(messages, think=think, answering=answering))

    def tokens(
        self, messages: Sequence[Message], *, think: bool | None = None, answering: bool = True
    ) -> list[int]:
        """The tokens of a conversation, an answer's whole ids generated, all others given, up to where the model answers; behind an unfinished answer, up to where it goes on.

        For messages without forged control tokens and without generated ids they are the ids of the rendered text.
        `think` asks for reasoning or for none, of templates that can; None leaves it to the template. Unless
        `answering` they end with the last message.

        Every message stands in them once and in order. Where one does not and would as a text, all stand there as texts;
        one that the template itself leaves out is named in a notice.
        """
        if answering and messages[-1].role == "assistant":
            said = self.unfinished(messages)
            is_given = messages[-1].tokens is None
            return self.tokens(messages[:-1], think=think) + (said if is_given else as_generated(said))
        grown = self.growing.tokens(self._taken(messages), self._framing(_options(think), answering))
        if grown is not None:
            return grown
        given, rendering, lost = self._built(messages, think, answering)
        if lost and any(message.tokens is not None for message in messages):
            plain = [replace(message, tokens=None) for message in messages]
            other, as_texts, still_lost = self._built(plain, think, answering)
            regains = len(still_lost) < len(lost) and not self._drops_alike(
                (given, rendering), (other, as_texts), set(lost) - set(still_lost)
            )
            if rendering.is_broken or regains:
                self._say(_BREAKS_UP)
                given, rendering, lost = other, as_texts, still_lost
        if lost:
            self._say(_LEAVES_OUT, len(lost), len(given.traces))
        return self._encoder.encode(rendering.parts(given.known))

    def unfinished(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the answer that the conversation ends with; none if it ends with a question."""
        last = messages[-1]
        if last.role != "assistant":
            return []
        return list(self.tokenizer.encode_as_text(last.text) if last.tokens is None else last.tokens)

    def next_prefix(self, messages: Sequence[Message], *, think: bool | None = None) -> list[int]:
        """The tokens that the prompt begins with whatever is said next; none if the template refuses that.

        A message of the user's that the conversation ends with is taken for the beginning of a longer one.
        """
        begun = messages[-1].text if messages and messages[-1].role == "user" else None
        said = messages if begun is None else messages[:-1]
        try:
            probes = [
                self.tokens([*said, Message("user", (begun or "") + text)], think=think) for text in _PROBES
            ]
        except TemplateRefusedError:
            return []
        return probes[0][: common_prefix(*probes)]

    def typed_prefix(self, messages: Sequence[Message], *, think: bool | None = None) -> list[int]:
        """The tokens that the prompt begins with however the last message, which is being typed, goes on; now and then
        one of them turns out otherwise, for what a tokenizer may still join it alone knows."""
        last = messages[-1]
        settled = self.tokenizer.settled(last.text)
        known = last.text[: settled + 1] if settled else ""  # with what the last word begins with
        return self.next_prefix([*messages[:-1], replace(last, text=known)], think=think)

    def shared_tokens(self, messages: Sequence[Message], *, think: bool | None = None) -> int:
        """How many tokens of the prompt come before anything that the user says: the system prompt and its frame."""
        system = [message for message in messages[:1] if message.role == "system"]
        return len(self.next_prefix(system, think=think))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """The ids of an answer that another model gave, as this one would have generated them."""
        lead = self._traits.lead
        control = [found.end() for found in self.tokenizer.control_pattern.finditer(lead)]
        end = max(control, default=0)
        head = self.tokenizer.encode(lead[:end]) if end else ()
        return head + self.tokenizer.encode_as_text(lead[end:] + text)

    def opens_reasoning(self, messages: Sequence[Message], *, think: bool | None = None) -> bool:
        """Whether the prompt itself ends inside a reasoning part, as DeepSeek-R1's does."""
        if self.marks is None:
            return False
        asked = messages[:-1] if messages[-1].role == "assistant" else messages
        system = [message for message in asked[:1] if message.role == "system"]  # it may ask for none
        rendered = self._render(self._input([*system, *asked[-1:]], think)).rstrip()
        return rendered.endswith(self.marks.start) and not rendered.endswith(self.marks.end)

    # Building a prompt

    def _built(
        self, messages: Sequence[Message], think: bool | None, answering: bool
    ) -> tuple[TemplateInput, Rendering, list[int]]:
        """The messages rendered, with the ids that are known, and those that got lost on the way."""
        given = self._input(messages, think)
        rendering = self._restored(Rendering.of(self._render(given, answering=answering)), given)
        lead = self._traits.lead
        for place, number in enumerate(rendering.numbers):
            if lead and number in given.answers:
                rendering.texts[place] = rendering.texts[place].removesuffix(lead)
        return given, rendering, rendering.lost(given.traces)

    def _drops_alike(
        self,
        with_ids: tuple[TemplateInput, Rendering],
        as_texts: tuple[TemplateInput, Rendering],
        regained: set[int],
    ) -> bool:
        """Whether the template leaves the same out of both, and the `regained` messages are only found in others' texts."""
        given, rendering = with_ids
        if any(given.traces[number].sign in rendering.numbers for number in regained):
            return False
        texts = [
            self.tokenizer.decode(ids_of(self._encoder.encode(each.parts(known.known))))
            for known, each in (with_ids, as_texts)
        ]
        return texts[0] == texts[1]

    def _say(self, notice: str, *numbers: int) -> None:
        """Tell it, unless that was told before with whatever numbers."""
        if notice not in self._said:
            self._said.add(notice)
            self._notify(notice.format(*numbers))

    def _input(self, messages: Sequence[Message], think: bool | None = None) -> TemplateInput:
        said, options = self._taken(messages), _options(think)
        same = num_same(said, self._said_before) if options == self._input_before.options else 0
        given = self._input_before.beginning(same, options)
        for message in said[same:]:
            self._reader.add(message, given)
        if len(said) > MANY_PARTS:
            self._said_before, self._input_before = list(said), given.beginning(len(said), options)
        return given

    def _taken(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages in the roles that the template knows."""
        return messages if self._traits.takes_system else with_folded_system(messages)

    def _framing(self, options: Mapping[str, bool], answering: bool) -> Framing:
        """What the template knows beside the messages."""
        names = {
            **self.tokenizer.names,
            **options,
            "add_generation_prompt": answering,
            "tools": self._tools,
        }
        return Framing(names, self._now, self._traits.header if answering else "", self._traits.lead)

    def _render(self, given: TemplateInput, *, answering: bool = True) -> str:
        """The text of the messages, with the generation prompt if `answering`."""
        framing = self._framing(given.options, answering)
        return self._program.render(given.messages, framing.now, **framing.names) + framing.header

    def _restored(self, rendering: Rendering, given: TemplateInput) -> Rendering:
        """Where the template kept an answer's reasoning in a frame of its own, the answer's exact ids in place of all."""
        marks = self.marks
        if marks is None or not given.thoughts:
            return rendering
        pairs, changed = rendering.neighbours(), {}
        for thought in given.thoughts:
            place = pairs.get((thought.thought, thought.shown))
            if place is None or not marks.is_frame(rendering.texts[place + 1]):
                continue
            before = self._traits.before_ids(rendering.texts[place], is_opened=thought.is_opened)
            if before is not None:
                number = given.hide(as_generated(thought.ids))
                given.traces[thought.message] = Trace(number)
                changed[place] = (before, number)
        return rendering.joined(changed) if changed else rendering

    def _find_closing(self) -> tuple[int, ...]:
        """The control tokens that stand right behind an answer: they end a turn whatever the model's settings say."""
        given = self._input([Message("user", "a"), Message("assistant", "b", tokens=())])
        try:
            behind = Rendering.of(self._render(given, answering=False)).texts[-1]
        except TemplateRefusedError:
            return ()
        ids = self.tokenizer.encode(behind.lstrip())[:1]
        return tuple(i for i in ids if i in self.tokenizer.control.values())


def _options(think: bool | None) -> dict[str, bool]:
    """What asks a template for reasoning, or for none."""
    return {} if think is None else dict.fromkeys(THINK_NAMES, think)
