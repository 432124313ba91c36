"""Why an answer stopped before its own end, and how to continue from there. Knows no screen."""

from __future__ import annotations

from dataclasses import dataclass

from kvchat.backends.base import MAX_TOKENS, Answer, FinishReason
from kvchat.chat.session import Session, is_empty

_GOES_ON = "/continue goes on"


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an answer stopped, and what can be said next in a dialogue; both are empty where the model ended it."""

    why: str = ""
    then: str = ""

    def __str__(self) -> str:
        return "; ".join(part for part in (self.why, self.then) if part)


def ending(session: Session, answer: Answer, context: int) -> Ending:
    """Of an answer that has just ended in a session; the model's `context` in tokens, 0 if it is not known."""
    reason = answer.finish_reason
    if is_empty(answer):
        return Ending("stopped before it began", "your message is back in the input")
    if reason is FinishReason.CANCELLED:
        return Ending("stopped by you", _GOES_ON)
    if reason is FinishReason.BROKEN:
        return Ending()  # what broke it was said as it broke
    if reason is FinishReason.REPETITION:
        return Ending("stopped: it kept repeating itself", f"{_GOES_ON}, /set repeat_stop off lets it run")
    if reason is FinishReason.LENGTH and context and answer.usage.total_tokens >= context:
        return Ending(f"stopped: the context of {context} tokens is full", "/compact or /drop makes room")
    if reason is FinishReason.LENGTH:
        return Ending(_limit(session), f"{_GOES_ON}, /set max_tokens N changes the limit")
    return Ending(f"stopped at the stop string {answer.stop_text!r}" if answer.stop_text else "")


def _limit(session: Session) -> str:
    """The longest answer that was allowed, and who set that."""
    limit = session.chosen.max_tokens
    if "max_tokens" in session.preset.options:
        return f"stopped at {limit} tokens, the limit of the prompt {session.preset.name}"
    if limit is not None:
        return f"stopped at {limit} tokens, which is max_tokens"
    own = session.backend.info().defaults.max_tokens
    if own is not None:
        return f"stopped at {own} tokens, the limit in the model's own settings"
    return f"stopped at {MAX_TOKENS} tokens, the longest answer by default"
