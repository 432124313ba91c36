"""The dialogue line by line, for dumb terminals and screen readers: nothing on the screen is ever changed."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TextIO

from kvchat.backends.base import Backend, Done, Event, Notice, Phase, Text
from kvchat.chat.session import Session
from kvchat.errors import EngineDiedError, KvchatError, UsageError
from kvchat.ui import commands
from kvchat.ui.cache_watch import CacheWatch
from kvchat.ui.clean import for_messages, raw
from kvchat.ui.clipboard import clipboard_sequence
from kvchat.ui.cost import check_length, offers_room, room_text
from kvchat.ui.desk import Asking, Attachment, Choice, Surroundings
from kvchat.ui.endings import ending
from kvchat.ui.files import with_files
from kvchat.ui.mentions import mentioned_files, mentions_several
from kvchat.ui.oneshot import interruptible
from kvchat.ui.recap import recap
from kvchat.ui.render import error_line, stats_line
from kvchat.ui.tables import Look


class LineDialogue:
    """Reads a line, answers it, reads the next. The same session and commands as the full dialogue."""

    def __init__(self, session: Session, stdout: TextIO, surroundings: Surroundings) -> None:
        self.session = session
        self.surroundings = surroundings
        self._attached: list[Attachment] = []
        self._chosen: list[str] = []
        self._out = for_messages(stdout)
        self._leaving = False
        self._watch = CacheWatch(session)

    @property
    def look(self) -> Look:
        """Plain words, as wide as the terminal is."""
        return Look(shutil.get_terminal_size().columns, plain=True)

    def leave(self) -> None:
        """End the dialogue after the command that asks for it."""
        self._leaving = True

    def copy(self, text: str) -> None:
        """Put a text on the terminal's clipboard."""
        raw(self._out).write(clipboard_sequence(text))
        self._out.flush()

    def put_back(self, text: str) -> None:
        """Show it: the input can't be filled."""
        self._write(text + "\n")

    def offer(self, title: str, choices: Sequence[Choice], at: int = 0) -> None:
        """Let the user choose by number."""
        rows = [f"{number}. {choice.label}" for number, choice in enumerate(choices, 1)]
        self._write("\n".join(rows) + "\n")
        answer = input("number, or nothing: ").strip()
        if answer.isdecimal() and 1 <= int(answer) <= len(choices):
            self._chosen.extend(filter(None, [choices[int(answer) - 1].command]))

    def attach(self, attachment: Attachment) -> None:
        """Send it along with the next message."""
        self._attached.append(attachment)

    def show_loading(self, backend: Backend | None) -> None:
        """Say that it loads."""
        if backend is not None:
            self._write("loading\n")

    def run(self, first: Sequence[str] = ()) -> int:
        """Hold the dialogue until the input ends; the exit code. The lines in `first` come before what is typed."""
        self._write(
            "kvchat · a trailing \\ goes on in the next line · /help lists commands · Ctrl-D leaves\n"
        )
        if self.session.path:
            self._write(f"{recap(self.session)}\n")
        self._chosen.extend(first)
        while not self._leaving:
            try:
                text = self._chosen.pop(0) if self._chosen else self._read()
                if text:
                    self._do(text)
            except EOFError:
                self._write("\n")
                break
            except KeyboardInterrupt:
                self._write("\nCtrl-D leaves\n")
            except KvchatError as error:
                self._write(error_line(error.message, error.remedy) + "\n")
                if self.session.backend.status().phase is Phase.FAILED and not isinstance(
                    error, EngineDiedError
                ):
                    return error.exit_code  # there is nobody to talk to
        return 0

    def _read(self) -> str:
        """One message; a trailing backslash continues it on the next line."""
        self._prepare()
        lines = [input("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input("  "))
        return "\n".join(lines).strip()

    def _do(self, text: str) -> None:
        if commands.is_command(text):
            command, argument = commands.find(text)
            result = command.run(self, argument)
            shown = result.note if isinstance(result, Asking) else result
            self._write(shown + "\n" if shown else "")
            if isinstance(result, Asking):
                self._answer(result.events)
        else:
            self._answer(self.session.send(self._message(text)))

    def _message(self, text: str) -> str:
        """A message with what goes along with it."""
        attached, self._attached = self._attached, []
        whole = with_files(text.removeprefix("/") if text.startswith("//") else text)
        if mentions_several(text):
            self._write(
                f"{len(mentioned_files(text))} files go with it, {self.session.backend.count(whole)} tokens in all\n"
            )
            if input("send it? y/n ").strip().casefold() not in ("y", "yes"):
                raise UsageError("the message was not sent", "name less after the @")
        message = "\n\n".join((whole, *(attachment.message for attachment in attached)))
        check_length(self.session.backend, message)
        return message

    def _answer(self, events: Iterator[Event]) -> None:
        backend = self.session.backend
        with interruptible(backend):
            for event in events:
                if isinstance(event, Text) and not event.reasoning:
                    self._write(event.text)
                elif isinstance(event, Notice):
                    self._write((error_line(event.message) if event.is_warning else event.message) + "\n")
                elif isinstance(event, Done):
                    context = backend.info().context
                    why = str(ending(self.session, event.answer, context))
                    figures = stats_line(event.answer, context)
                    self._write("\n" + "\n".join(line for line in (why, figures) if line) + "\n")
        self._watch.look()
        self._offer_room(backend.info().context)

    def _prepare(self) -> None:
        """While the user reads and types: compute what the next prompt begins with."""

        def work() -> None:
            with suppress(KvchatError):  # the next message meets it too
                self.session.backend.info()  # what comes while the model loads is no idle work
                self.session.prepare()

        threading.Thread(target=work, name="prepare", daemon=True).start()

    def _offer_room(self, context: int) -> None:
        """Say how to make room when the context has just become nearly full."""
        if offers_room(self.session, context):
            self._write(room_text(self.session, context) + "\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
