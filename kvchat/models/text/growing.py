"""Prompts of conversations that grow: what was written, looked through and encoded of one once is not done again.

That is so only for templates that write a message the same whatever follows it (`template_steps`); what stands before a
message's known ids is then settled, text and tokens. Whatever is in doubt is left to the whole rendering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from kvchat.models.text.message_reader import MessageReader
from kvchat.models.text.parts import MANY_PARTS, Part
from kvchat.models.text.template_input import Message, Rendering, TemplateInput
from kvchat.models.text.template_language import TemplateProgram
from kvchat.models.text.template_steps import Steps
from kvchat.models.text.tokenizer import ChatTokenizer

MAX_CONVERSATIONS = 4
"""So many that grow side by side are remembered."""


@dataclass(frozen=True, slots=True)
class Framing:
    """All that a prompt depends on beside its messages: the template's other names, its clock, what begins an answer."""

    names: Mapping[str, Any]
    now: datetime
    header: str
    lead: str


@dataclass(frozen=True, slots=True)
class Settled:
    """The beginning of a conversation: the messages `said`, as the template took them, behind its text `before` all.

    `tokens` reach up to the last ids that are known in them; the text behind those, `open`, goes on with what follows.
    """

    framing: Framing | None = None
    said: tuple[Message, ...] = ()
    given: tuple[dict[str, Any], ...] = ()
    num_known: int = 0
    before: str = ""
    open: str = ""
    tokens: tuple[int, ...] = ()


class GrowingPrompts:
    """The prompts of one template. From any thread: what is remembered is replaced as a whole."""

    def __init__(self, program: TemplateProgram, reader: MessageReader, tokenizer: ChatTokenizer) -> None:
        self.num_read = 0
        """Messages that were read and rendered."""
        self._program = program
        self._reader = reader
        self._tokenizer = tokenizer
        self._settled: tuple[Settled, ...] = ()

    def tokens(self, messages: Sequence[Message], framing: Framing) -> list[int] | None:
        """The tokens of a prompt, as the whole rendering gives them; None where only that can tell."""
        if not self._program.has_steps or len(messages) <= MANY_PARTS:
            return None
        said = tuple(messages)
        settled = self._longest(said, framing)
        given = TemplateInput({}, first=settled.num_known)
        for message in said[len(settled.said) :]:
            self._reader.add(message, given)
        steps = self._steps(settled, given, framing)
        rendering = _rendering(settled, steps, given, framing) if steps else None
        if steps is None or rendering is None:
            return None
        self.num_read += len(given.messages)
        known = dict(enumerate(given.known, given.first))
        parts, num_settled = rendering.parts(known), len(said) - max(1, steps.reach)
        if num_settled > max(len(settled.said), steps.reach):
            new = steps.steps[: num_settled - len(settled.said)]
            settled, parts = self._grown(settled, replace(steps, steps=new), given, parts, (said, framing))
        return [*settled.tokens, *self._encoded(parts, is_start=not settled.tokens)]

    def _longest(self, said: tuple[Message, ...], framing: Framing) -> Settled:
        """What is settled of this conversation, its last message not among that."""
        fitting = (
            one
            for one in self._settled
            if len(one.said) < len(said) and one.framing == framing and said[: len(one.said)] == one.said
        )
        return max(fitting, key=lambda one: len(one.said), default=Settled())

    def _steps(self, settled: Settled, given: TemplateInput, framing: Framing) -> Steps | None:
        """What the template writes behind what is settled; None where it writes something else before that now."""
        if given.thoughts:
            return None
        messages = [*settled.given, *given.messages]
        steps = self._program.steps(messages, len(settled.given), framing.now, **framing.names)
        is_other = steps is None or (settled.framing is not None and steps.before != settled.before)
        return None if is_other else steps

    def _grown(
        self,
        settled: Settled,
        steps: Steps,
        given: TemplateInput,
        parts: list[Part],
        about: tuple[tuple[Message, ...], Framing],
    ) -> tuple[Settled, list[Part]]:
        """What is settled with these steps, and the parts that are left behind it."""
        (said, framing), num_new = about, len(steps.steps)
        text = Rendering.of("".join([_begun(settled, steps), *steps.steps]))
        if not text.numbers:
            return settled, parts
        cut = 2 * len(text.numbers)
        num_settled = len(settled.said) + num_new
        grown = Settled(
            framing,
            said[:num_settled],
            (*settled.given, *given.messages[:num_new]),
            given.first + given.sizes[num_new - 1],
            steps.before,
            text.texts[-1],
            (*settled.tokens, *self._encoded(parts[:cut], is_start=not settled.tokens)),
        )
        others = (one for one in self._settled if one is not settled)
        self._settled = (grown, *others)[:MAX_CONVERSATIONS]
        return grown, parts[cut:]

    def _encoded(self, parts: Sequence[Part], *, is_start: bool) -> list[int]:
        tokens: list[int] = []
        for place, part in enumerate(parts):
            if part:
                is_first = is_start and not place
                tokens += self._tokenizer.encode(part, is_start=is_first) if isinstance(part, str) else part
        return tokens


def _begun(settled: Settled, steps: Steps) -> str:
    """The text in front of the new steps that is not encoded yet."""
    return steps.before if settled.framing is None else settled.open


def _rendering(settled: Settled, steps: Steps, given: TemplateInput, framing: Framing) -> Rendering | None:
    """The text that is not encoded yet; None where it breaks the law of prompts, or repeats what is settled."""
    begun = _begun(settled, steps)
    rendering = Rendering.of("".join([begun, *steps.steps, steps.after, framing.header]))
    for place, number in enumerate(rendering.numbers):
        if framing.lead and number in given.answers:
            rendering.texts[place] = rendering.texts[place].removesuffix(framing.lead)
    start = len(begun) if settled.framing else 0
    is_lawful = (
        not rendering.is_broken
        and min(rendering.numbers, default=given.first) >= given.first
        and not rendering.lost(given.traces, start)
    )
    return rendering if is_lawful else None
