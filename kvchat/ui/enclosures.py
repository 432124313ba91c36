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
        rows = [f"with the next message: {each.label}, {each.size}"[: columns - 1] for each in self._attached]
        return [*rows, "  Tab shows the last of it, Backspace takes it back"[: columns - 1]] if rows else []

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

    def with_message(self, text: str, shown: str) -> str:
        """A message with all that goes along with it; nothing is attached any more. It is echoed as `shown`."""
        whole = self.beside(text)
        attached, self._attached = self._attached, []
        if attached or shown != text:
            self._shown[whole] = "\n".join((shown, *(f"[{each.label}, {each.size}]" for each in attached)))
        return whole

    def beside(self, text: str) -> str:
        """A message with all that would go along with it now."""
        return "\n\n".join((text, *(each.message for each in self._attached)))

    @property
    def last(self) -> Attachment | None:
        """What was attached last."""
        return self._attached[-1] if self._attached else None

    def take_back(self) -> str:
        """Let what was attached last stay here; what it is called."""
        return self._attached.pop().label

    def shown(self, text: str) -> str:
        """A message as it is echoed: what goes along with it is named alone."""
        return self._shown.pop(text, text)
