"""The dialogue: what keys mean, what events show. Everything here runs in the event loop's thread."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from kvchat.backends.base import Answer, Backend, Done, Event, Notice, Phase
from kvchat.chat.session import Session, is_empty
from kvchat.config import Config
from kvchat.errors import EXIT_INTERRUPTED, ContextOverflowError, KvchatError, ModelUnavailableError
from kvchat.ui import commands
from kvchat.ui.answer import Tail, wrapped
from kvchat.ui.cache_watch import CacheWatch, cache_part
from kvchat.ui.clean import sanitize
from kvchat.ui.clipboard import clipboard_sequence
from kvchat.ui.cost import fullness, is_full, ways_to_room
from kvchat.ui.desk import Attachment, Choice, Surroundings
from kvchat.ui.endings import ending
from kvchat.ui.engine_watch import EngineWatch
from kvchat.ui.entry import MAX_CHARACTERS
from kvchat.ui.greeting import PLACEHOLDER, farewell, greeting, model_lines
from kvchat.ui.history import message_history
from kvchat.ui.keyboard import Keyboard
from kvchat.ui.keys import key_bindings
from kvchat.ui.live_answer import LiveAnswer
from kvchat.ui.recap import recap, shown
from kvchat.ui.render import dim, error_line, phase_text, stats_line, toolbar
from kvchat.ui.screen import PROMPT, Content, Screen
from kvchat.ui.tables import Look, Styled
from kvchat.ui.turns import Turns

_LEAVE_S = 2.0
_QUEUED_ROWS = 3
_ECHOED = 20_000


class Repl:
    """A dialogue in a terminal."""

    def __init__(
        self, session: Session, config: Config, surroundings: Surroundings, *, color: bool = True
    ) -> None:
        self.session = session
        self.surroundings = surroundings
        self._config = config
        self._color = color
        self._turns = Turns(session, self, self)
        self._engine = EngineWatch(session, self._turns, self)
        self._cache = CacheWatch(session)
        self._screen = Screen(
            Content(self._tail, self._queued, self._toolbar, self._placeholder),
            message_history(config.paths.data / "history", save=config.chat.save, complain=self.show_error),
            vi=config.ui.vi,
            on_large_paste=self._refuse_paste,
        )
        self._keyboard = Keyboard(self, self._screen, self._turns)
        self._screen.listen(key_bindings(self._keyboard))
        self._live = LiveAnswer(self._screen, config.ui, color=color)
        self._hopeless: KvchatError | None = None
        self._warnings: list[str] = []  # that came amid an answer
        self._introduced = ""  # the model that was last said to answer
        self._counted: tuple[object, int] = (None, 0)  # a place in the tree, and the tokens up to it
        self._seen: object = session.place  # the place that was looked at last

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
        log = _LogLines(lambda message: self._turns.hand(self._warn, message))
        logging.getLogger("kvchat").addHandler(log)
        works = (self._turns.work(), self._greet(), self._engine.work())
        tasks = [asyncio.create_task(work) for work in works]
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
        self._screen.print_above(dim(self._wrapped(greeting())))
        if self.session.path:
            self._screen.print_above(shown(recap(self.session), self.look))

    def _end(self, code: int) -> None:
        """Leave though the user did not ask for it: what was typed goes into the history."""
        try:
            self._screen.buffer.append_to_history()
        finally:
            self._screen.leave(code)

    def _look_at_cache(self) -> None:
        """In a thread, for it waits: see what the cache has stored."""
        self._cache.look()
        self._turns.hand(self._screen.app.invalidate)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._say_error(f"internal error: {type(error).__name__}: {error}" if error else context["message"])

    # What commands and keys ask for

    @property
    def look(self) -> Look:
        """How what a command says is shown."""
        return Look(self._screen.columns, color=self._color)

    @property
    def thought(self) -> str:
        """What the model thinks now, or thought before its last answer."""
        if self._live.thought:
            return self._live.thought
        return sanitize(self.session.last.reasoning) if self.session.last else ""

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
        self._turns.hand(self._keyboard.attach, attachment)

    def show_loading(self, backend: Backend | None) -> None:
        """Show how far the loading of another backend is; may be called from any thread."""
        self._engine.show_loading(backend)

    def stop_loading(self) -> bool:
        """Give up the other backend that is being loaded; whether there is one."""
        return self._engine.stop_loading()

    def show(self, text: str) -> None:
        """Print dim lines above the input."""
        self._screen.print_above(dim(sanitize(text)))

    def echo(self, text: str) -> None:
        """Print what was entered above the input, of much of it the beginning."""
        more = len(text) - _ECHOED
        shown = f"{text[:_ECHOED]}… ({more} more characters)" if more > 0 else text
        self._screen.print_above(f"\x1b[1m{PROMPT}\x1b[22m" + sanitize(shown).replace("\n", "\n  "))

    def show_error(self, error: KvchatError) -> None:
        """Print an error above the input."""
        self._say_error(error.message, error.remedy)

    # What becomes of messages

    def on_turn(self, text: str) -> None:
        """A message is sent now."""
        self._live.begin()
        if text:
            self.echo(self._keyboard.shown(text))

    def on_event(self, event: Event) -> None:
        """Show it."""
        if isinstance(event, Notice):
            self._warn(event.message)
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
        self._say_error(error.message, error.remedy)
        if isinstance(error, ContextOverflowError):
            self._turns.start(self._offer_room, not self._screen.buffer.text)
        if not commands.is_command(text):  # a command is in the history; here it would begin the next message
            self._turns.waiting.appendleft(text)
        self._keyboard.put_back(self._turns.take_back())

    def on_turn_end(self) -> None:
        """The next message may come."""
        self._recount(is_answered=not commands.is_command(self._turns.running or ""))
        self._live.drop()
        self._say_warnings()
        self._screen.app.invalidate()
        self._engine.prepare_again()

    def on_result(self, text: str, shown: str, error: KvchatError | None) -> None:
        """Show what a command gave."""
        self.echo(text)
        if shown:
            self._screen.print_above(
                shown if isinstance(shown, Styled) else dim(self._wrapped(sanitize(shown)))
            )
        if error:
            self._say_error(error.message, error.remedy)
        self._recount()

    def _recount(self, *, is_answered: bool = False) -> None:
        """Count the conversation anew if it moved; an answer to a message tells its length itself."""
        if self._seen != (place := self.session.place):
            self._seen = place
            if not is_answered:
                self._turns.start(self._count)

    def _on_done(self, answer: Answer) -> None:
        columns = self._screen.columns
        why = self._wrapped(str(ending(self.session, answer, self._context())))
        figures = stats_line(answer, self._context(), columns)
        self._live.end(then="\n".join(dim(line) for line in (why, figures) if line) + "\n")
        self._turns.start(self._look_at_cache)
        if is_full(self.session, self._context()) and not is_full(self.session, self._context(), back=2):
            self._turns.start(self._offer_room, False)
        if is_empty(answer) and self._turns.running:
            self._keyboard.put_back(self._turns.running)

    def _offer_room(self, as_list: bool) -> None:
        """In a thread, for it asks the backend: how to make room in the context."""
        with suppress(KvchatError):
            choices, title = ways_to_room(self.session), fullness(self.session, self._context())
            if choices and as_list:
                self.offer(f"{title}: (Enter makes room, Esc leaves)", choices)
            elif choices:
                lines = [f"{title}; to make room:", *(choice.label for choice in choices)]
                self._turns.hand(self.show, "\n".join(lines))

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
            self.show(self._wrapped("\n".join(model_lines(info))))

    def on_no_model(self, error: KvchatError) -> None:
        """There is nobody to talk to: end."""
        if not self._screen.app.is_done:
            self._hopeless = error
            self._end(error.exit_code)

    # What is shown

    def _refuse_paste(self) -> None:
        self._say_error(f"a paste of more than {MAX_CHARACTERS} characters is not taken", "take what matters")

    def _say_error(self, message: str, remedy: str = "") -> None:
        line = self._wrapped(error_line(message, remedy))
        self._screen.print_above(f"\x1b[31m{line}\x1b[39m" if self._color else line)

    def _warn(self, message: str) -> None:
        """Say something that is no answer to what was asked: not in the middle of an answer, but behind it."""
        if self._live.is_begun:
            self._warnings.append(message)
        else:
            self._say_error(message)

    def _say_warnings(self) -> None:
        warnings, self._warnings = self._warnings, []
        for message in warnings:
            self._say_error(message)

    def _wrapped(self, text: str) -> str:
        """The text broken between words, as the terminal would not."""
        columns = max(2, self._screen.columns)
        return "\n".join(row for line in text.split("\n") for row in wrapped(line, columns))

    def _name(self) -> str:
        return self._engine.name(otherwise=self._config.model.name)

    def _context(self) -> int:
        info = self._engine.info
        return info.context if info else self._config.model.context or 0

    def _tail(self, columns: int, num_rows: int) -> Tail:
        tail = self._live.tail(columns, num_rows)
        if tail is not None:
            return tail
        loading = self._engine.loading(columns)
        return Tail([loading] if loading else [], "wait")

    def _queued(self, columns: int) -> list[str]:
        waiting = self._turns.waiting
        begun = (" ".join(sanitize(text[: 4 * columns]).split()) for text in waiting)
        shown = [f"queued: {text}"[: columns - 1] for text in begun]
        if len(shown) > _QUEUED_ROWS:
            shown = [*shown[: _QUEUED_ROWS - 1], f"… and {len(shown) - _QUEUED_ROWS + 1} more"]
        return shown + self._keyboard.rows(columns)

    def _toolbar(self, columns: int) -> str:
        if self._keyboard.hint:
            return toolbar([self._keyboard.hint], columns)
        status = self._engine.status()
        parts = [*self._screen.mode, self._name(), phase_text(status)]
        if status.phase in (Phase.PREFILLING, Phase.DECODING):
            parts = [phase_text(status), "Ctrl-C stops", *self._live.progress, self._name()]
        if used := self._used():
            parts.append(f"ctx {used}/{self._context()}")
        if self.session.totals.answers:
            parts.append(f"hit {100 * self.session.totals.hit_rate:.0f}%")
        if self._cache.view:
            parts.append(cache_part(self._cache.view))
        return toolbar(parts, columns)

    def _placeholder(self) -> str:
        return "" if self.session.path or self._turns.running else PLACEHOLDER

    def _used(self) -> int:
        """Tokens of the conversation: as they were counted after a move, or as the last answer left them."""
        place, tokens = self._counted
        if place == self.session.place:
            return tokens
        return self.session.last.usage.total_tokens if self.session.last else 0

    def _count(self) -> None:
        """In a thread, for it waits: how long the conversation is where it moved to."""
        place, history = self.session.place, self.session.history
        with suppress(KvchatError):
            view = (
                self.session.backend.cache(history, self.session.chosen, has_rows=False) if history else None
            )
            self._counted = place, view.prompt_tokens if view else 0
            self._turns.hand(self._screen.app.invalidate)


class _LogLines(logging.Handler):
    """Warnings of the program as lines above the input."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        self._say(record.getMessage())
