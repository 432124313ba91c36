"""An answer while it comes: its text so far, and when that is to be saved again. Knows no store and no backend."""

from __future__ import annotations

from kvchat.backends.base import Answer, CacheReport, FinishReason, Text, Timings, Usage
from kvchat.chat.tree import Exchange

SAVE_EVERY_S = 1.0
"""At most so much of an answer is lost when the program is killed."""


class Incoming:
    """The answer of `exchange`, or the rest of it where the exchange has the beginning.

    `back_to` is the tip to return to if nothing comes of it, `is_new` whether the exchange is then forgotten;
    `kept` becomes true as soon as something came of it.
    """

    def __init__(self, exchange: Exchange, *, back_to: str | None, is_new: bool) -> None:
        self.exchange = exchange
        self.back_to = back_to
        self.is_new = is_new
        self.kept = False
        self._text = ""
        self._reasoning = ""
        self._due_at = 0.0

    @property
    def whole(self) -> tuple[str, str]:
        """Text and reasoning with what was there before."""
        before = self.exchange.answer
        if before is None:
            return self._text, self._reasoning
        return before.text + self._text, before.reasoning + self._reasoning

    def take(self, event: Text, now_s: float) -> bool:
        """Add new text; whether it is time to save. `now_s` is of a clock that never goes back."""
        if event.reasoning:
            self._reasoning += event.text
        else:
            self._text += event.text
        if now_s < self._due_at:
            return False
        self._due_at = now_s + SAVE_EVERY_S
        return True

    def cancelled(self) -> Answer:
        """What came so far as an answer without ids, for when the backend can no longer give it."""
        usage, timings = Usage(0, 0, 0), Timings(0, 0, 0, 0, 0, 0, 0, 0)
        report = CacheReport(0, {}, 0, "")
        reason = FinishReason.CANCELLED
        return Answer(self._text, self._reasoning, (), (), "", reason, usage, timings, report)
