"""The dialogue: what keys mean, what events show. Everything here runs in the event loop's thread."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvchat.backends.base import Answer, Done, Event, ModelInfo, Notice, Phase, Status
from kvchat.chat.session import Session, is_empty
from kvchat.config import Config
from kvchat.errors import KvchatError, ModelUnavailableError
from kvchat.ui import commands
from kvchat.ui.answer import AnswerView, PlainBlocks, Tail
from kvchat.ui.history import message_history
from kvchat.ui.keys import key_bindings
from kvchat.ui.render import dim, error_line, phase_text, sanitize, stats_line, toolbar
from kvchat.ui.screen import PROMPT, Content, Screen
from kvchat.ui.turns import Turns

FRAME_S = 0.05
"""Time between two redraws that an answer causes."""

_POLL_S = 0.1
_HINT_S = 2.0
_LEAVE_S = 2.0
_QUEUED_ROWS = 3


class Repl:
    """A dialogue in a terminal."""

    def __init__(self, session: Session, config: Config, *, color: bool = True) -> None:
        self.session = session
        self._config = config
        self._color = color
        self._turns = Turns(session, self, self)
        self._screen = Screen(
            Content(self._tail, self._queued, self._toolbar),
            key_bindings(self, vi=config.ui.vi),
            message_history(config.paths.data / "history", save=config.chat.save),
            vi=config.ui.vi,
        )
        self._view: AnswerView | None = None
        self._frame_due = False
        self._hint = ("", 0.0)
        self._info: ModelInfo | None = None
        self._hopeless: KvchatError | None = None

    # The dialogue's life

    def run(self) -> int:
        """Hold the dialogue to its end; the exit code. Does not close the backend.

        Raises KvchatError when the model could not be loaded at all.
        """
        code = asyncio.run(self._run())
        if self._hopeless is not None:
            raise self._hopeless
        return code

    async def _run(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._on_loop_error)
        for signum in (signal.SIGTERM, signal.SIGHUP):
            self._loop.add_signal_handler(signum, self._screen.leave, 128 + signum)
        self._loop.add_signal_handler(signal.SIGTSTP, self.suspend)
        log = _LogLines(lambda message: self._turns.hand(self._say_error, message))
        logging.getLogger("kvchat").addHandler(log)
        tasks = [asyncio.create_task(work) for work in (self._turns.work(), self._greet(), self._watch())]
        try:
            return await self._screen.app.run_async(set_exception_handler=False)
        except (EOFError, OSError):  # the terminal is gone
            return 128 + signal.SIGHUP
        finally:
            logging.getLogger("kvchat").removeHandler(log)
            for task in tasks:
                task.cancel()
            self._turns.abandon(_LEAVE_S)

    async def _greet(self) -> None:
        self._screen.print_above(dim(f"kvchat · {self._name()} · /help"))

    async def _watch(self) -> None:
        """Follow the engine's state: redraw when it changes, ask once for the model when it stands."""
        shown: Status | None = None
        while True:
            status = self.session.backend.status()
            changed = shown is None or status.phase is not shown.phase
            if changed and status.phase in (Phase.READY, Phase.FAILED):
                self._turns.start(self._learn_of_model)
            if changed and shown and shown.phase is Phase.READY and status.phase is Phase.STARTING:
                self._say_error("the engine ended and is started again; the conversation is kept")
                self._turns.start(self.session.backend.start)
            if status != shown:
                self._screen.app.invalidate()
            shown = status
            await asyncio.sleep(_POLL_S)

    def _learn_of_model(self) -> None:
        """In a thread: what the model is, and what rendering needs, before the first answer comes."""
        try:
            self._new_view()
            self._info = self.session.backend.info()
        except KvchatError as error:
            self._turns.hand(self._give_up, error)

    def _give_up(self, error: KvchatError) -> None:
        """The model can't be loaded: say so, or end if it never could; what was typed goes into the history."""
        if self._info is not None:
            self._say_error(error.message, error.remedy)
        elif not self._screen.app.is_done:
            self._hopeless = error
            self._screen.buffer.append_to_history()
            self._screen.leave(error.exit_code)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._say_error(f"internal error: {type(error).__name__}: {error}" if error else context["message"])

    # What keys mean

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being made."""
        return self._turns.running is not None

    def submit(self) -> None:
        """Send the input, unless it ends in a backslash: that is a new line."""
        buffer = self._screen.buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
            return
        text = buffer.text.strip()
        if not text:
            return
        buffer.reset(append_to_history=True)
        if commands.is_command(text):
            self._submit_command(text)
        else:
            self._turns.add(text)

    def _submit_command(self, text: str) -> None:
        try:
            command, _ = commands.find(text)
        except KvchatError as error:
            self.on_result(text, "", error)
            return
        if command.anytime:
            self._turns.run_now(text)
        else:
            self._turns.add(text)

    def interrupt(self) -> None:
        """Ctrl-C: stop the answer, or take back what waits, or clear the input, or leave at the second time."""
        buffer = self._screen.buffer
        if self.is_answering:
            self.stop()
        elif self._turns.waiting:
            self._put_back(self._turns.take_back())
        elif buffer.text:
            buffer.reset()
        elif self._hint[1] > time.monotonic():
            self.leave()
        else:
            self._show_hint("Ctrl-C again leaves")

    def stop(self) -> None:
        """Stop the answer; what was said stays."""
        self.session.backend.cancel()

    def end_of_input(self) -> None:
        """Leave if the input is empty."""
        if self._screen.buffer.text:
            self._screen.buffer.delete()
        else:
            self.leave()

    def leave(self) -> None:
        """End the dialogue; may be called from any thread."""
        self._turns.hand(self._screen.leave, 0)

    def recall(self) -> None:
        """The message that waits last if there is one, else the line above, else an earlier message."""
        if self._turns.waiting and not self._screen.buffer.text:
            self._set_input(self._turns.waiting.pop())
        else:
            self._screen.buffer.auto_up()

    def complete(self) -> None:
        """Complete a command as far as it is clear, and name what it may become."""
        names = commands.completions(self._screen.buffer.text)
        if len(names) == 1:
            self._set_input(names[0] + " ")
        elif names:
            self._set_input(commands.common_start(names))
            self._show_hint("  ".join(names))

    def redraw_all(self) -> None:
        """Clear the screen and draw anew."""
        self._screen.clear()

    def suspend(self) -> None:
        """Give the terminal back to the shell."""
        self._screen.suspend()

    # What becomes of messages

    def on_turn(self, text: str) -> None:
        """A message is sent now."""
        self._view = self._new_view()
        self._echo(text)

    def on_event(self, event: Event) -> None:
        """Note what is new and see to it that it is drawn, at most once in FRAME_S."""
        if isinstance(event, Notice):
            self._say_error(event.message)
        elif isinstance(event, Done):
            self._on_done(event.answer)
        elif self._view is not None:
            self._view.take(event)
            if not self._frame_due:
                self._frame_due = True
                self._loop.call_later(FRAME_S, self._frame)

    def on_failure(self, text: str, error: KvchatError) -> None:
        """Say it, and give back what could not be sent, with what waited behind it."""
        self._print_rest()
        if isinstance(error, ModelUnavailableError) and self._info is None:
            self._give_up(error)
            return
        self._say_error(error.message, error.remedy)
        self._turns.waiting.appendleft(text)
        self._put_back(self._turns.take_back())

    def on_turn_end(self) -> None:
        """The next message may come."""
        self._view = None
        self._screen.app.invalidate()

    def on_result(self, text: str, shown: str, error: KvchatError | None) -> None:
        """Show what a command gave."""
        self._echo(text)
        if shown:
            self._screen.print_above(dim(sanitize(shown)))
        if error:
            self._say_error(error.message, error.remedy)

    def _on_done(self, answer: Answer) -> None:
        self._print_rest(then=dim(stats_line(answer, self._context())) + "\n")
        if is_empty(answer) and self._turns.running:
            self._put_back(self._turns.running)

    def _frame(self) -> None:
        """Print what became finished and draw the rest."""
        self._frame_due = False
        finished = self._view.finished(self._screen.columns) if self._view else ""
        if finished:
            self._screen.print_above(finished)
        else:
            self._screen.app.invalidate()

    def _print_rest(self, then: str = "") -> None:
        """Print what is left of the answer, and a line after it."""
        rest = self._view.finished(self._screen.columns, whole=True) if self._view else ""
        self._view = None
        lines = [line for line in (rest, then) if line]
        if lines:
            self._screen.print_above("\n".join(lines))

    def _new_view(self) -> AnswerView:
        if self._config.ui.markdown == "never":
            return AnswerView(PlainBlocks())
        from kvchat.ui.markdown import MarkdownBlocks

        return AnswerView(MarkdownBlocks(color=self._color))

    # What is shown

    def _echo(self, text: str) -> None:
        self._screen.print_above(f"\x1b[1m{PROMPT}\x1b[22m" + sanitize(text).replace("\n", "\n  "))

    def _say_error(self, message: str, remedy: str = "") -> None:
        line = error_line(message, remedy)
        self._screen.print_above(f"\x1b[31m{line}\x1b[39m" if self._color else line)

    def _show_hint(self, text: str) -> None:
        self._hint = (text, time.monotonic() + _HINT_S)
        self._loop.call_later(_HINT_S + 0.01, self._screen.app.invalidate)

    def _set_input(self, text: str) -> None:
        self._screen.buffer.text = text
        self._screen.buffer.cursor_position = len(text)

    def _put_back(self, text: str) -> None:
        """Give back to the input what was not sent, ahead of what was typed since."""
        typed = self._screen.buffer.text
        self._set_input(f"{text}\n{typed}" if typed else text)

    def _name(self) -> str:
        return sanitize(Path(self._info.name if self._info else self._config.model.name).name)

    def _context(self) -> int:
        return self._info.context if self._info else self._config.model.context or 0

    def _tail(self, columns: int) -> Tail:
        return self._view.tail(columns) if self._view else Tail([])

    def _queued(self, columns: int) -> list[str]:
        waiting = self._turns.waiting
        shown = [f"queued: {' '.join(sanitize(text).split())}"[: columns - 1] for text in waiting]
        if len(shown) <= _QUEUED_ROWS:
            return shown
        return [*shown[: _QUEUED_ROWS - 1], f"… and {len(shown) - _QUEUED_ROWS + 1} more"]

    def _toolbar(self, columns: int) -> str:
        hint, until = self._hint
        if until > time.monotonic():
            return toolbar([hint], columns)
        parts = [self._name(), phase_text(self.session.backend.status())]
        if self.session.last and self.session.last.usage.total_tokens:
            parts.append(f"ctx {self.session.last.usage.total_tokens}/{self._context()}")
            parts.append(f"hit {100 * self.session.totals.hit_rate:.0f}%")
        return toolbar(parts, columns)


class _LogLines(logging.Handler):
    """Warnings of the program as lines above the input."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        self._say(record.getMessage())


def run_repl(session: Session, config: Config, *, color: bool = True) -> int:
    """Hold a dialogue until the user leaves; the exit code."""
    return Repl(session, config, color=color).run()
