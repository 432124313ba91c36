"""What to have computed of a message that is being typed, and when: from its text and its pauses alone. Knows no screen."""

from __future__ import annotations

from dataclasses import dataclass

from kvchat.backends.base import Reach

PAUSE_S = 0.2
"""Behind a pause of this length the rest of the message is computed, and what closes its prompt: hardly anybody looks
less long at what they wrote before they press Enter."""
LONG_PAUSE_S = 0.7
"""Behind one of this length its answer is begun."""
SENTENCE_PAUSE_S = 0.1
"""Behind the end of a sentence, where most messages end, both are done after this."""

_ENDS = (".", "?", "!", "…", ":", "。", "？", "！")
_ORDER = (Reach.TYPED, Reach.WHOLE, Reach.BEGUN)


@dataclass(frozen=True, slots=True)
class Ask:
    """A message as it is, and how far to compute it ahead."""

    text: str
    reach: Reach


class Anticipation:
    """Follows one input. Times are in seconds of any clock that goes on."""

    def __init__(self) -> None:
        self._text = ""
        self._changed_at = 0.0
        self._asked: Ask | None = None
        self._is_busy = False

    @property
    def has_asked(self) -> bool:
        """Whether anything was asked for that is to be dropped if the message goes."""
        return self._asked is not None

    def forget(self) -> None:
        """What was asked for is gone: the message was sent, or what it was computed for has changed."""
        self._asked, self._is_busy = None, False

    def end(self, ask: Ask) -> None:
        """What was asked for is done, or was given up."""
        if ask is self._asked:
            self._is_busy = False

    def next(self, text: str, now: float, most: Reach) -> Ask | None:
        """What to ask for now, at most as far as `most`; it takes the place of what was asked before. None for nothing.

        As long as one types on, what is being computed is right and is let be; an edit ends it.
        """
        if text != self._text:
            self._text, self._changed_at = text, now
        reach = min(self._due(now), most, key=_ORDER.index)
        asked = self._asked
        if not text or (asked and asked.text == text and _ORDER.index(reach) <= _ORDER.index(asked.reach)):
            return None
        if asked and self._is_busy and reach is Reach.TYPED and text.startswith(asked.text):
            return None
        self._asked, self._is_busy = Ask(text, reach), True
        return self._asked

    def wait_s(self, now: float) -> float | None:
        """After how long there may be more to ask for though no key is pressed; None for never."""
        waits = sorted((PAUSE_S, self._long_pause_s()))
        return next((self._changed_at + wait - now for wait in waits if self._changed_at + wait > now), None)

    def _due(self, now: float) -> Reach:
        paused = now - self._changed_at
        if paused >= self._long_pause_s():
            return Reach.BEGUN
        return Reach.WHOLE if paused >= PAUSE_S else Reach.TYPED

    def _long_pause_s(self) -> float:
        return SENTENCE_PAUSE_S if self._text.rstrip().endswith(_ENDS) else LONG_PAUSE_S
