"""What the engine keeps of one conversation: its live state and its guesses at what comes next. Several can be alive."""

from __future__ import annotations

from kvchat.engine.speculation import Drafts, Speculation
from kvchat.models.kv_state import KVState


class LiveSequence:
    """The state of one conversation, between answers and while one is made. An engine's `new_sequence` makes it.

    Nothing in it is another conversation's: what all of an engine's sequences share (weights, cache, measured costs)
    the engine holds. A sampler belongs to one answer, and lives as long as its decoding.
    """

    __slots__ = ("speculation", "state")

    def __init__(self, state: KVState, speculation: Speculation | None = None) -> None:
        self.state = state
        self.speculation = speculation

    @property
    def drafts(self) -> Drafts:
        """What was guessed ahead since it began."""
        return self.speculation.drafts if self.speculation else Drafts()
