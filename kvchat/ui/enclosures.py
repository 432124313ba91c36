"""What goes along with the next message: files, and the output of commands once that was asked. Draws nothing."""

from __future__ import annotations

from kvchat.ui.desk import Attachment
from kvchat.ui.shell import Output


class Enclosures:
    """Collects what is attached until a message takes it along."""

    def __init__(self) -> None:
        self._attached: list[Attachment] = []
        self._question: Output | None = None
        self._shown: dict[str, str] = {}  # what is echoed of messages that took something along

    def __bool__(self) -> bool:
        return bool(self._attached)

    @property
    def is_asking(self) -> bool:
        """Whether a question waits for y or n."""
        return self._question is not None

    def rows(self, columns: int) -> list[str]:
        """The question, or what is attached, a row each."""
        if self._question is not None:
            return [f"add these {self._question.num_lines} lines to the next message? y/n"[: columns - 1]]
        return [f"with the next message: {each.label}"[: columns - 1] for each in self._attached]

    def attach(self, attachment: Attachment) -> None:
        """Send it along with the next message."""
        self._attached.append(attachment)

    def clear(self) -> None:
        """Send nothing along."""
        self._attached.clear()

    def ask(self, output: Output | None) -> None:
        """Ask whether a command's output goes along; None takes the question away."""
        self._question = output

    def reply(self, is_yes: bool) -> None:
        """Whether the output that was asked about goes along."""
        assert self._question is not None
        if is_yes:
            self.attach(Attachment(f"output of {self._question.command}", self._question.message))
        self._question = None

    def with_message(self, text: str) -> str:
        """A message with all that goes along with it; nothing is attached any more."""
        attached, self._attached = self._attached, []
        whole = "\n\n".join((text, *(each.message for each in attached)))
        if attached:
            self._shown[whole] = "\n".join((text, *(f"[{each.label}, {each.size}]" for each in attached)))
        return whole

    def shown(self, text: str) -> str:
        """A message as it is echoed: what goes along with it is named alone."""
        return self._shown.pop(text, text)
