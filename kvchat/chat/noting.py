"""Picks out of what the user said the sentences that a summary must not lose: standing instructions, facts, names, numbers.

Knows English by a few dozen words, and no model: what it keeps stands word for word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kvchat.chat.tree import Exchange

HEAD = "What I told you, in my words:"
"""Stands above the sentences in what the model is told."""
LONGEST = 240
"""Characters of a sentence that is kept."""
LONGEST_MESSAGE = 2000
"""Of a longer message, a pasted one mostly, nothing is kept."""

_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?]+(?=\S)[^.!?\n]*)*[.!?]*")
_CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_STANDING = re.compile(
    r"\b(always|never|from now on|whenever|every time|call me|my name is|i am called)\b", re.IGNORECASE
)
_MARKED = re.compile(r"\b(remember|(do not|don't) forget|keep in mind|note that|important)\b", re.IGNORECASE)
_OWN = re.compile(
    r"\b(my|our|i'm|i am|i have|i live|i work|i like|i love|i hate|i prefer|i need|we have|we are|we use)\b",
    re.IGNORECASE,
)
_STATED = re.compile(
    r"\b(is|are|was|were|has|have|had|costs|lives|means|begins|ends|starts)\b|[:=]", re.IGNORECASE
)
_NAMED = re.compile(r"\d|(?<=[a-z,] )[A-Z]\w")
_ASKING = re.compile(
    r"(add|ask|calculate|can|compare|compute|continue|convert|could|count|create|define|describe|do|does|explain|find|fix|give|"
    r"go on|help|how|if|is|are|list|make|name|now|plan|please|say|show|summari[sz]e|suggest|tell|thanks?|translate|try|use|"
    r"what|when|where|which|who|why|will|would|write)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence, and whether it is an instruction for all that follows."""

    text: str
    is_standing: bool


def notes(path: Iterable[Exchange]) -> Iterator[Note]:
    """What is worth keeping of the user's messages, in order; of the same sentence the last."""
    found: dict[str, Note] = {}
    for exchange in path:
        for sentence in _sentences(exchange.user.text):
            if (note := _note(sentence)) is not None:
                found.pop(note.text, None)
                found[note.text] = note
    yield from found.values()


def fitting(found: Sequence[Note], most_bytes: int) -> tuple[str, ...]:
    """As many as have room, in their order: the instructions first, and the newest of each kind."""
    chosen: set[str] = set()
    for _, note in sorted(enumerate(found), key=lambda at: (not at[1].is_standing, -at[0])):
        size = len(note.text.encode()) + len("- \n")
        if size <= most_bytes:
            chosen.add(note.text)
            most_bytes -= size
    return tuple(note.text for note in found if note.text in chosen)


def listed(sentences: Sequence[str]) -> str:
    """The sentences as the model is told them; empty for none."""
    return "\n".join([HEAD, *(f"- {sentence}" for sentence in sentences)]) if sentences else ""


def listed_text(text: str) -> str:
    """`4 sentences of yours`, of a message that begins with what `listed` made; empty for any other."""
    count = sum(line.startswith("- ") for line in text.splitlines()) if text.startswith(HEAD) else 0
    return f"{count} {'sentence' if count == 1 else 'sentences'} of yours" if count else ""


def _sentences(text: str) -> Iterator[str]:
    if len(text) <= LONGEST_MESSAGE:
        yield from (found.strip() for found in _SENTENCE.findall(_CODE.sub("", text)))


def _note(sentence: str) -> Note | None:
    """What a sentence is worth; None for a question, a request, or talk."""
    if not sentence or len(sentence) > LONGEST or sentence.endswith("?"):
        return None
    if _STANDING.search(sentence):
        return Note(sentence, True)
    is_stated = _OWN.search(sentence) or (_STATED.search(sentence) and _NAMED.search(sentence))
    is_fact = _MARKED.search(sentence) or (is_stated and not _ASKING.match(sentence))
    return Note(sentence, False) if is_fact else None
