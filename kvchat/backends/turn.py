"""One message of a conversation, as a value that crosses a pipe as JSON. Knows nothing of what answers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """Who speaks in a turn; `tool` is what a program gave back that the model called.

    `prompt` is a prompt as it is, without a template: a history that begins with one is such turns and the model's own
    answers, one directly behind the other.
    """

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    PROMPT = "prompt"


def well_formed(text: str) -> str:
    """A text that can be written as UTF-8: halves of characters are joined, or become a mark where one is missing."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    `tokens` are the exact ids of an answer as the model generated them (without the token that ends the turn), and
    `tokenizer` names the tokenizer that they belong to; a backend with another tokenizer encodes `text` anew.
    `text` is the answer without its reasoning, `reasoning` the part in front of it. `time_s` (since the epoch) is what
    time it is in the whole conversation, for a template that prints it: that of the first turn that has one counts.
    What is `pinned`, a system prompt, is evicted last. `tools` are those that the model may call in the whole conversation,
    where the first turn that has some counts, and `extra` is what else a template may know of this message (calls, the
    name of a tool): both JSON, or empty. What is said is always well-formed.
    """

    role: Role
    text: str
    reasoning: str = ""
    tokens: tuple[int, ...] | None = None
    tokenizer: str | None = None
    time_s: float | None = field(default=None, compare=False)
    pinned: bool = field(default=False, compare=False)
    tools: str = ""
    extra: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", well_formed(self.text))
        object.__setattr__(self, "reasoning", well_formed(self.reasoning))


def time_of(history: Sequence[Turn]) -> float | None:
    """What time it is in a conversation, in seconds since the epoch; None if it does not say."""
    return next((turn.time_s for turn in history if turn.time_s is not None), None)
