"""What a chat template does to a conversation's past, found out by holding short conversations with it. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from kvchat.cache.block import common_prefix
from kvchat.errors import TemplateRefusedError
from kvchat.models.kinds import ids_of
from kvchat.models.text.template import ChatTemplate, Message

_QUESTIONS = ("one two", "three\nfour", "five")
_ANSWER, _THOUGHT = "six seven", "eight"


class TemplateKind(StrEnum):
    """How a prompt continues the one before and its answer.

    `append-safe`: it begins with both to the token. `reasoning-stripping`: but for the reasoning of the last answer, and
    what asked for it. `rewriting`: not even that.
    """

    APPEND_SAFE = "append-safe"
    REASONING_STRIPPING = "reasoning-stripping"
    REWRITING = "rewriting"


def kind_of(template: ChatTemplate) -> TemplateKind:
    """The weakest of what its probe conversations show; takes some milliseconds."""
    silent = template.unheard()
    found = {kind for probe in _probes(silent) for kind in _kinds(silent, *probe)}
    order = (TemplateKind.REWRITING, TemplateKind.REASONING_STRIPPING, TemplateKind.APPEND_SAFE)
    return next((kind for kind in order if kind in found), TemplateKind.REWRITING)


def _probes(template: ChatTemplate) -> Iterator[tuple[list[Message], bool, bool | None]]:
    """How each conversation begins, whether its answers have reasoning, and what was asked of them."""
    system = [Message("system", "nine ten")]
    yield [], False, None
    yield system, False, None
    if template.marks is not None:
        yield system, True, None
    if template.asks_for_thought:
        yield system, False, False


def _kinds(
    template: ChatTemplate, history: list[Message], reasons: bool, think: bool | None
) -> Iterator[TemplateKind]:
    """What becomes of each answer of a conversation when the next message comes; nothing if the template refuses it."""
    kept: list[int] = []
    for question in _QUESTIONS:
        history = [*history, Message("user", question)]
        try:
            asked = template.prompt(history, think=think)
            body = common_prefix(asked, template.prompt(history, think=think, answering=False))
            answer, is_plain = _answer(template, history, reasons, think)
        except TemplateRefusedError:
            return
        if asked[: len(kept)] != kept:
            yield TemplateKind.REWRITING
        history = [*history, answer]
        kept = ids_of(template.next_prefix(history, think=think))
        whole = [*asked, *(answer.tokens or ())]
        if kept[: len(whole)] == whole:
            yield TemplateKind.APPEND_SAFE
        elif kept[:body] == asked[:body] and (not is_plain or common_prefix(kept, asked) < len(asked)):
            yield TemplateKind.REASONING_STRIPPING if template.marks else TemplateKind.REWRITING
        else:
            yield TemplateKind.REWRITING


def _answer(
    template: ChatTemplate, history: list[Message], reasons: bool, think: bool | None
) -> tuple[Message, bool]:
    """An answer as the model would generate it, and whether it has no reasoning."""
    marks, encode = template.marks, template.tokenizer.encode
    said = template.answer_ids(_ANSWER)
    is_open = template.opens_reasoning(history, think=think)
    if marks is None or not (reasons or is_open):
        return Message("assistant", _ANSWER, tokens=said), True
    opening = "" if is_open else marks.start
    thought = encode(f"{opening}\n{_THOUGHT}\n{marks.end}\n\n")
    return Message(
        "assistant", _ANSWER, _THOUGHT, (*thought, *template.tokenizer.encode_as_text(_ANSWER))
    ), False
