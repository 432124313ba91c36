"""A conversation that is given a title by its model, once, while nobody waits. Knows no clock: what is idle time, its caller says."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kvchat.backends.base import Answer, Done, FinishReason, Options, Role, Turn
from kvchat.chat.room import MakingRoom
from kvchat.chat.tree import TITLE_LENGTH, Exchange, title_of

TITLE_REQUEST = "Give this conversation a title of three to six words. Answer with the title alone, on one line, without quotes."
"""What the model is asked behind the first answer."""
TITLE_TOKENS = 16
_MOST_WORDS = 10
_TELLING = 4  # letters of a word, or of its beginning, that says what is talked about
_SILENT = frozenset(
    ("with", "this", "that", "your", "from", "have", "what", "about", "conversation", "title")
)
_LABEL = re.compile(
    r"^(the )?(title|conversation|topic|subject)( of this conversation)?( is)?\s*[:\-–]\s*", re.IGNORECASE
)


class Titling(MakingRoom):
    """A conversation whose title is its first words until the model has found a better one."""

    titles = False
    """Whether the model is asked for one."""
    is_titling = False
    """Whether it is being asked now."""
    _tried = ""  # the session that was given a title, or could not be

    @property
    def wants_title(self) -> bool:
        """Whether the model is still to be asked: the first message is answered, and nobody has named the session."""
        if not self.titles or self._tried == self.id or self.name:
            return False
        path = self.path
        return bool(path) and path[0].answer is not None and self.title == title_of(path[0].user.text)

    def make_title(self) -> None:
        """Ask the model for a title, and keep it if it makes sense; else the first words stay.

        Waits for its end; it gives way as soon as something is asked, or the backend is cancelled. A model that would have
        to compute the conversation again afterwards, or that a server is paid for, is not asked. Raises KvchatError as
        `Backend.answer` does.
        """
        with self._idle:
            if self._is_asked or not self.wants_title:
                return
            session, first = self.id, self.path[0]
            self._tried = session
            if self.backend.info().reuse not in ("blocks", "snapshots"):
                return
            self.is_titling = True
            try:
                answer = self._title_answer(first)
            finally:
                self.is_titling = False
            if answer is not None and answer.finish_reason is FinishReason.CANCELLED:
                self._tried = ""  # another time
            title = sensible_title(answer, first) if answer else ""
            if title and self.id == session and not self.name:
                self._journal.entitle(title)

    def _title_answer(self, first: Exchange) -> Answer | None:
        history = (*self._headed([first]), Turn(Role.USER, TITLE_REQUEST))
        options = Options(max_tokens=TITLE_TOKENS, temperature=0.0, repetition_penalty=1.0, think=False)
        *_, last = self.backend.answer(history, options)
        return last.answer if isinstance(last, Done) else None


def sensible_title(answer: Answer, first: Exchange) -> str:
    """The title that an answer is; empty for one that was cut, is too long, or has no word of what was said."""
    if answer.finish_reason is not FinishReason.STOP:
        return ""
    line = next((line for line in answer.text.splitlines() if line.strip(" #*\"'`“”")), "")
    title = _LABEL.sub("", " ".join(line.split()).strip(" #*\"'`“”")).strip(" *\"'`“”.:")
    words = re.findall(r"\w+", title.casefold())
    if not 1 <= len(words) <= _MOST_WORDS or len(title) > TITLE_LENGTH:
        return ""
    return title if _is_about(words, first) else ""


def _is_about(words: Sequence[str], first: Exchange) -> bool:
    """Whether one of the words, or its beginning, was said; any will do of a script that has no spaces."""
    said = f"{first.user.text} {first.said}".casefold()
    telling = (
        word for word in words if word not in _SILENT and (len(word) >= _TELLING or not word.isascii())
    )
    return any(word[:_TELLING] in said for word in telling)
