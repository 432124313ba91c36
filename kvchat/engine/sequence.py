"""What the engine keeps of one conversation: its live state and its guesses at what comes next. Several can be alive."""

from __future__ import annotations

from collections.abc import Callable

from kvchat.engine.request import Progress
from kvchat.engine.speculation import Guessed, Speculation
from kvchat.models.kv_state import KVState

PASSING_PRIORITY = -1
"""Of blocks that were computed for somebody who asks and leaves; on the disk they are as good as any."""


def unheard(progress: Progress) -> None:
    """Nobody listens."""


class LiveSequence:
    """The state of one conversation, between answers and while one is made. An engine's `new_sequence` makes it.

    Nothing in it is another conversation's: what all of an engine's sequences share (weights, cache, measured costs)
    the engine holds. A sampler belongs to one answer, and lives as long as its decoding.
    """

    __slots__ = ("on_progress", "priority", "speculation", "state")

    def __init__(self, state: KVState, speculation: Speculation | None = None) -> None:
        self.state = state
        self.speculation = speculation
        self.priority = 0
        """Of its blocks that are neither shared nor pinned."""
        self.on_progress: Callable[[Progress], None] = unheard
        """Is told between the layers of a prefill's forwards how far it came; `generate` yields the same behind each."""

    @property
    def drafts(self) -> Guessed:
        """What was guessed ahead since it began."""
        return self.speculation.drafts if self.speculation else Guessed()
