"""Asks before a message takes several files along: says what they weigh in tokens, and Enter again sends it.

Lives in the event loop's thread; tokens are counted in a thread of its own, for that may have to wait for the model.
"""

from __future__ import annotations

from collections.abc import Callable

from kvchat.chat.session import Session
from kvchat.errors import KvchatError
from kvchat.ui.figures import percent_text
from kvchat.ui.files import with_files
from kvchat.ui.mentions import mentioned_files, mentions_several
from kvchat.ui.turns import Turns


class Weighing:
    """One message that waits until its size was seen. `show_error` is told why it can't be sent."""

    def __init__(self, session: Session, turns: Turns, show_error: Callable[[KvchatError], None]) -> None:
        self._session = session
        self._turns = turns
        self._show_error = show_error
        self._text = ""
        self._line = ""
        self._is_weighed = False

    def holds(self, text: str) -> bool:
        """Whether a message has to wait, because the user has not seen yet how much goes along with it."""
        if not mentions_several(text):
            return False
        if text == self._text:
            return not self._is_weighed
        self._text, self._line, self._is_weighed = text, "counting tokens…", False
        self._turns.start(self._weigh, text)
        return True

    def rows(self, text: str, columns: int) -> list[str]:
        """What is said about the message as long as it is the input."""
        return [self._line[: columns - 1]] if self._text and text.strip() == self._text else []

    def _weigh(self, text: str) -> None:
        """In a thread: read the files and count."""
        try:
            whole, count = with_files(text), len(mentioned_files(text))
            tokens, context = self._session.backend.count(whole), self._session.backend.info().context
        except KvchatError as error:
            self._turns.hand(self._refuse, error)
            return
        if not count:
            self._turns.hand(self._say, text, "no text file is there: Enter sends the message alone")
            return
        files = "1 file" if count == 1 else f"{count} files"
        share = f", {percent_text(tokens / context)} of the context" if context else ""
        self._turns.hand(self._say, text, f"with {files} it has {tokens} tokens{share}: Enter sends it")

    def _say(self, text: str, line: str) -> None:
        if text == self._text:
            self._line, self._is_weighed = line, True

    def _refuse(self, error: KvchatError) -> None:
        self._text = ""
        self._show_error(error)
