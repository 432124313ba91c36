"""The dialogue: what keys mean, what events show. Everything here runs in the event loop's thread."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kvchat.backends.base import Answer, Backend, Done, Event, Notice, Phase
from kvchat.chat.session import Session, WhenFull, is_empty
from kvchat.config import Config
from kvchat.errors import EXIT_INTERRUPTED, ContextOverflowError, KvchatError, ModelUnavailableError
from kvchat.ui import commands
from kvchat.ui.answer import Tail
from kvchat.ui.clean import sanitize
from kvchat.ui.clipboard import clipboard_sequence
from kvchat.ui.cost import fullness, offers_room, room_text, ways_to_room
from kvchat.ui.desk import Attachment, Choice, Surroundings
from kvchat.ui.endings import ending
from kvchat.ui.engine_watch import EngineWatch
from kvchat.ui.entry import MAX_CHARACTERS
from kvchat.ui.greeting import PLACEHOLDER, farewell, greeting, model_lines
from kvchat.ui.history import message_history
from kvchat.ui.keyboard import Keyboard
from kvchat.ui.keys import key_bindings
from kvchat.ui.live_answer import LiveAnswer
from kvchat.ui.live_part import Content
from kvchat.ui.log_lines import log_lines
from kvchat.ui.menu import queued_rows
from kvchat.ui.printer import Printer
from kvchat.ui.recap import recap, shown
from kvchat.ui.render import dim, stats_line, toolbar
from kvchat.ui.screen import Screen
from kvchat.ui.status_bar import StatusBar
from kvchat.ui.tables import Look, Styled
from kvchat.ui.turns import Turns
from kvchat.ui.typeahead import TypeAhead

_LEAVE_S = 2.0


class Repl:
    """A dialogue in a terminal."""

    def __init__(
        self, session: Session, config: Config, surroundings: Surroundings, *, color: bool = True
    ) -> None:
        self.session = session
        self.surroundings = surroundings
        self._config = config
        self._turns = Turns(session, self, self)
        self._engine = EngineWatch(session, self._turns, self, lambda: bool(self._screen.buffer.text))
        self._screen = Screen(
            Content(self._tail, self._queued, self._toolbar, self._placeholder),
            message_history(config.paths.data / "history", save=config.chat.save, complain=self.show_error),
            vi=config.ui.vi,
            on_large_paste=self._refuse_paste,
        )
        self._printer = Printer(self._screen, color=color)
        self._keyboard = Keyboard(self, self._screen, self._turns)
        self._screen.listen(key_bindings(self._keyboard, self._keyboard.chooser))
        self._live = LiveAnswer(self._screen, config.ui, color=color)
        self._bar = StatusBar(session, config, self._engine, self._turns, self._live, self.redraw)
        self._ahead = TypeAhead(session, config.ui, self._turns, self._keyboard.message, self.redraw)
        self._screen.buffer.on_text_changed += self._ahead.on_key
        self._hopeless: KvchatError | None = None
        self._introduced = ""  # the model that was last said to answer

    # The dialogue's life

    def run(self, first: Sequence[str] = ()) -> int:
        """Hold the dialogue to its end; the exit code. Does not close the backend.

        The lines in `first` are run before anything that is typed.
        Raises KvchatError when the model could not be loaded at all.
        """
        for line in first:
            self._turns.add(line)
        code = asyncio.run(self._run())
        if self._hopeless is not None:
            raise self._hopeless
        if code == 0 and (line := farewell(self.session, is_saved=self._config.chat.save)):
            self._screen.say_last(dim(sanitize(line)))
        return code

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        for signum in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, self._end, 128 + signum)
        loop.add_signal_handler(signal.SIGTSTP, self._keyboard.suspend)
        works = (self._turns.work(), self._greet(), self._engine.work(), self._ahead.work())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            with log_lines(lambda message: self._turns.hand(self._warn, message)):
                return await self._screen.app.run_async(set_exception_handler=False)
        except (EOFError, OSError):  # the terminal is gone
            return 128 + signal.SIGHUP
        finally:
            for task in tasks:
                task.cancel()
            self._turns.abandon(_LEAVE_S)

    async def _greet(self) -> None:
        self._screen.print_above(dim(self._printer.wrapped(greeting())))
        if self.session.path:
            self._screen.print_above(shown(recap(self.session), self.look))

    def _end(self, code: int) -> None:
        """Leave though the user did not ask for it: what was typed goes into the history."""
        try:
            self._screen.buffer.append_to_history()
        finally:
            self._screen.leave(code)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        problem = f"internal error: {type(error).__name__}: {error}" if error else context["message"]
        self._printer.error(problem)

    # What commands and keys ask for

    @property
    def look(self) -> Look:
        """How what a command says is shown."""
        return self._printer.look

    @property
    def thought(self) -> str:
        """What the model thinks now, or thought before its last answer."""
        last = self.session.last
        return self._live.thought or (sanitize(last.reasoning) if last else "")

    def leave(self) -> None:
        """End the dialogue; may be called from any thread."""
        self._turns.hand(self._screen.leave, 0)

    def break_off(self) -> None:
        """End the dialogue; while its model loads, that is an interrupt and no end."""
        is_loading = self.session.backend.status().phase in (Phase.STARTING, Phase.LOADING)
        self._screen.leave(EXIT_INTERRUPTED if is_loading else 0)

    def copy(self, text: str) -> None:
        """Put a text on the terminal's clipboard; may be called from any thread."""
        self._turns.hand(self._screen.write, clipboard_sequence(text))

    def put_back(self, text: str) -> None:
        """Put a text into the input; may be called from any thread."""
        self._turns.hand(self._keyboard.put_back, text)

    def offer(self, title: str, choices: Sequence[Choice], at: int = 0) -> None:
        """Show a list to choose from; may be called from any thread."""
        self._turns.hand(self._keyboard.offer, title, choices, at)

    def attach(self, attachment: Attachment) -> None:
        """Send it along with the next message; may be called from any thread."""
        self._turns.hand(self._keyboard.enclosures.attach, attachment)

    def show_loading(self, backend: Backend | None) -> None:
        """Show how far the loading of another backend is; may be called from any thread."""
        self._engine.show_loading(backend)

    def stop_loading(self) -> bool:
        """Give up the other backend that is being loaded; whether there is one."""
        return self._engine.stop_loading()

    def show(self, text: str) -> None:
        """Print dim lines above the input."""
        self._printer.show(text)

    def echo(self, text: str) -> None:
        """Print what was entered above the input, of much of it the beginning."""
        self._printer.echo(text)

    def show_error(self, error: KvchatError) -> None:
        """Print an error above the input."""
        self._printer.show_error(error)

    # What becomes of messages

    def on_turn(self, text: str) -> None:
        """A message is sent now."""
        self._live.begin()
        if text:
            self.echo(self._keyboard.enclosures.shown(text))

    def on_event(self, event: Event) -> None:
        """Show it."""
        if isinstance(event, Notice):
            (self._warn if event.is_warning else self._printer.tell)(event.message)
        elif isinstance(event, Done):
            self._on_done(event.answer)
        else:
            self._live.take(event)

    def on_failure(self, text: str, error: KvchatError) -> None:
        """Say it, and give back what could not be sent, with what waited behind it."""
        self._live.end()
        if isinstance(error, ModelUnavailableError) and self._engine.info is None:
            self._engine.give_up(error)
            return
        self._printer.error(error.message, error.remedy)
        if isinstance(error, ContextOverflowError) and self.session.when_full is WhenFull.ASK:
            self._turns.start(self._offer_room, not self._screen.buffer.text)
        if not commands.is_command(text):  # a command is in the history; here it would begin the next message
            self._turns.waiting.appendleft(text)
        self._keyboard.put_back(self._turns.take_back())

    def on_turn_end(self) -> None:
        """The next message may come."""
        self._bar.recount(is_answered=not commands.is_command(self._turns.running or ""))
        self._live.drop()
        self._printer.say_warnings()
        self._screen.app.invalidate()
        self._engine.prepare_again()

    def on_result(self, text: str, shown: str, error: KvchatError | None) -> None:
        """Show what a command gave."""
        self.echo(text)
        if shown:
            self._screen.print_above(
                shown if isinstance(shown, Styled) else dim(self._printer.wrapped(sanitize(shown)))
            )
        if error:
            self._printer.error(error.message, error.remedy)
        self._bar.recount()

    def _on_done(self, answer: Answer) -> None:
        columns = self._screen.columns
        why = self._printer.wrapped(str(ending(self.session, answer, self._bar.context)))
        figures = stats_line(answer, self._bar.context, columns)
        self._live.end(then="\n".join(dim(line) for line in (why, figures) if line) + "\n")
        self._bar.look_at_cache()
        if offers_room(self.session, self._bar.context):
            self._turns.start(self._offer_room, False)
        if is_empty(answer) and self._turns.running:
            self._keyboard.put_back(self._turns.running)

    def _offer_room(self, as_list: bool) -> None:
        """In a thread, for it asks the backend: how to make room in the context."""
        with suppress(KvchatError):
            if not as_list:
                self._turns.hand(self.show, room_text(self.session, self._bar.context))
            elif choices := ways_to_room(self.session):
                title = fullness(self.session, self._bar.context)
                self.offer(f"{title}: (Enter makes room, Esc leaves)", choices)

    # What becomes of the engine

    def redraw(self) -> None:
        """What the engine does has changed."""
        self._screen.app.invalidate()

    def load(self) -> None:
        """In a thread: the first answer may come soon."""
        self._live.load()

    def on_model(self) -> None:
        """Say who answers, once for each model; not amid what is said."""
        self._screen.app.invalidate()
        info = self._engine.info
        if info is not None and info.name != self._introduced and not self._turns.running:
            self._introduced = info.name
            self.show(self._printer.wrapped("\n".join(model_lines(info))))

    def on_no_model(self, error: KvchatError) -> None:
        """There is nobody to talk to: end."""
        if not self._screen.app.is_done:
            self._hopeless = error
            self._end(error.exit_code)

    # What is shown

    def _warn(self, message: str) -> None:
        """Say something that is no answer to what was asked: not in the middle of an answer, but behind it."""
        self._printer.warn(message, is_now=not self._live.is_begun)

    def _refuse_paste(self) -> None:
        self._printer.error(
            f"a paste of more than {MAX_CHARACTERS} characters is not taken", "paste the part that matters"
        )

    def _tail(self, columns: int, num_rows: int) -> Tail:
        tail = self._live.tail(columns, num_rows)
        if tail is not None:
            return tail
        loading = self._engine.loading(columns)
        return Tail([loading] if loading else [], "wait")

    def _queued(self, columns: int) -> list[str]:
        return queued_rows(self._turns.waiting, columns) + self._keyboard.rows(columns)

    def _toolbar(self, columns: int) -> str:
        hint, sign = self._keyboard.hint, self._ahead.sign
        return toolbar([hint], columns) if hint else self._bar.line(columns, self._screen.mode, sign)

    def _placeholder(self) -> str:
        return "" if self.session.path or self._turns.running else PLACEHOLDER
