"""The dialogue: what keys mean, what events show. Everything here runs in the event loop's thread."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvchat.backends.base import Answer, Backend, Done, Event, ModelInfo, Notice, Phase, Status
from kvchat.chat.session import Session, is_empty
from kvchat.config import Config
from kvchat.errors import ContextOverflowError, KvchatError, ModelUnavailableError
from kvchat.ui.answer import AnswerView, PlainBlocks, Tail
from kvchat.ui.cache_watch import CacheWatch, cache_part
from kvchat.ui.clipboard import clipboard_sequence
from kvchat.ui.cost import fullness, is_full, ways_to_room
from kvchat.ui.desk import Attachment, Choice, Surroundings
from kvchat.ui.history import message_history
from kvchat.ui.keyboard import Keyboard
from kvchat.ui.keys import key_bindings
from kvchat.ui.recap import recap
from kvchat.ui.render import dim, error_line, loading_row, phase_text, sanitize, stats_line, toolbar
from kvchat.ui.screen import PROMPT, Content, Screen
from kvchat.ui.tables import Look, Styled
from kvchat.ui.turns import Turns

FRAME_S = 0.05
"""Time between two redraws that an answer causes."""

_POLL_S = 0.1
_LEAVE_S = 2.0
_QUEUED_ROWS = 3


class Repl:
    """A dialogue in a terminal."""

    def __init__(
        self, session: Session, config: Config, surroundings: Surroundings, *, color: bool = True
    ) -> None:
        self.session = session
        self.surroundings = surroundings
        self._incoming: Backend | None = None
        self._config = config
        self._color = color
        self._turns = Turns(session, self, self)
        self._cache = CacheWatch(session)
        self._screen = Screen(
            Content(self._tail, self._queued, self._toolbar),
            message_history(config.paths.data / "history", save=config.chat.save),
            vi=config.ui.vi,
        )
        self._keyboard = Keyboard(self, self._screen, self._turns)
        self._screen.listen(key_bindings(self._keyboard))
        self._view: AnswerView | None = None
        self._frame_due = False
        self._stage = ("", time.monotonic())  # of loading, and since when
        self._drawn: Status | None = None  # the engine's state that the toolbar shows
        self._info: ModelInfo | None = None
        self._hopeless: KvchatError | None = None

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
        return code

    async def _run(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._on_loop_error)
        for signum in (signal.SIGTERM, signal.SIGHUP):
            self._loop.add_signal_handler(signum, self._end, 128 + signum)
        self._loop.add_signal_handler(signal.SIGTSTP, self._keyboard.suspend)
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
        if self.session.path:
            self.show(recap(self.session))

    async def _watch(self) -> None:
        """Follow the engine's state: redraw when it changes, ask once for the model when it stands."""
        shown: Status | None = None
        backend = self.session.backend
        while True:
            if backend is not self.session.backend:
                backend, shown = self.session.backend, None
            status = backend.status()
            changed = shown is None or status.phase is not shown.phase
            if changed and status.phase in (Phase.READY, Phase.FAILED):
                self._turns.start(self._learn_of_model)
            if changed and shown and shown.phase is Phase.READY and status.phase is Phase.STARTING:
                self._say_error("the engine ended and is started again; the conversation is kept")
                self._turns.start(backend.start)
            if status != self._drawn or self._incoming:  # it may have changed and changed back meanwhile
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
        """The model can't be loaded: say so, or end if it never could."""
        if self._info is not None:
            self._say_error(error.message, error.remedy)
        elif not self._screen.app.is_done:
            self._hopeless = error
            self._end(error.exit_code)

    def _end(self, code: int) -> None:
        """Leave though the user did not ask for it: what was typed goes into the history."""
        self._screen.buffer.append_to_history()
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
        if self._view is not None and self._view.thought:
            return self._view.thought
        return sanitize(self.session.last.reasoning) if self.session.last else ""

    def leave(self) -> None:
        """End the dialogue; may be called from any thread."""
        self._turns.hand(self._screen.leave, 0)

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
        self._incoming = backend

    def stop_loading(self) -> bool:
        """Give up the other backend that is being loaded; whether there is one."""
        backend, self._incoming = self._incoming, None
        if backend is not None:
            self._turns.start(backend.close)
        return backend is not None

    def show(self, text: str) -> None:
        """Print dim lines above the input."""
        self._screen.print_above(dim(sanitize(text)))

    def echo(self, text: str) -> None:
        """Print what was entered above the input."""
        self._screen.print_above(f"\x1b[1m{PROMPT}\x1b[22m" + sanitize(text).replace("\n", "\n  "))

    def show_error(self, error: KvchatError) -> None:
        """Print an error above the input."""
        self._say_error(error.message, error.remedy)

    # What becomes of messages

    def on_turn(self, text: str) -> None:
        """A message is sent now."""
        self._view = self._new_view()
        if text:
            self.echo(text)

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
        if isinstance(error, ContextOverflowError):
            self._turns.start(self._offer_room, not self._screen.buffer.text)
        self._turns.waiting.appendleft(text)
        self._keyboard.put_back(self._turns.take_back())

    def on_turn_end(self) -> None:
        """The next message may come; what its prompt begins with is computed while the user reads."""
        self._view = None
        self._screen.app.invalidate()
        if not self._turns.waiting and self._info and self._info.template != "append-safe":
            self._turns.start(self._prepare)

    def _prepare(self) -> None:
        """In a thread, for it waits."""
        with suppress(KvchatError):  # the next message meets it too
            self.session.prepare()

    def on_result(self, text: str, shown: str, error: KvchatError | None) -> None:
        """Show what a command gave."""
        self.echo(text)
        if shown:
            self._screen.print_above(shown if isinstance(shown, Styled) else dim(sanitize(shown)))
        if error:
            self._say_error(error.message, error.remedy)

    def _on_done(self, answer: Answer) -> None:
        self._print_rest(then=dim(stats_line(answer, self._context())) + "\n")
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
            return AnswerView(PlainBlocks(), show_thought=self._config.ui.reasoning)
        from kvchat.ui.markdown import MarkdownBlocks

        return AnswerView(MarkdownBlocks(color=self._color), show_thought=self._config.ui.reasoning)

    # What is shown

    def _say_error(self, message: str, remedy: str = "") -> None:
        line = error_line(message, remedy)
        self._screen.print_above(f"\x1b[31m{line}\x1b[39m" if self._color else line)

    def _name(self) -> str:
        return sanitize(Path(self._info.name if self._info else self._config.model.name).name)

    def _context(self) -> int:
        return self._info.context if self._info else self._config.model.context or 0

    def _tail(self, columns: int) -> Tail:
        if self._view is not None:
            return self._view.tail(columns)
        backend = self._incoming or self.session.backend
        status, now = backend.status(), time.monotonic()
        if status.phase is not Phase.LOADING or (self._info is not None and not self._incoming):
            return Tail([])
        if status.detail != self._stage[0]:
            self._stage = (status.detail, now)
        return Tail([loading_row(status, now - self._stage[1], columns)], "wait")

    def _queued(self, columns: int) -> list[str]:
        waiting = self._turns.waiting
        shown = [f"queued: {' '.join(sanitize(text).split())}"[: columns - 1] for text in waiting]
        if len(shown) > _QUEUED_ROWS:
            shown = [*shown[: _QUEUED_ROWS - 1], f"… and {len(shown) - _QUEUED_ROWS + 1} more"]
        return shown + self._keyboard.rows(columns)

    def _toolbar(self, columns: int) -> str:
        if self._keyboard.hint:
            return toolbar([self._keyboard.hint], columns)
        self._drawn = self.session.backend.status()
        parts = [self._name(), phase_text(self._drawn)]
        if self.session.last and self.session.last.usage.total_tokens:
            parts.append(f"ctx {self.session.last.usage.total_tokens}/{self._context()}")
            parts.append(f"hit {100 * self.session.totals.hit_rate:.0f}%")
        if self._cache.view:
            parts.append(cache_part(self._cache.view))
        return toolbar(parts, columns)


class _LogLines(logging.Handler):
    """Warnings of the program as lines above the input."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        self._say(record.getMessage())


def run_repl(
    session: Session,
    config: Config,
    surroundings: Surroundings,
    *,
    color: bool = True,
    first: Sequence[str] = (),
) -> int:
    """Hold a dialogue until the user leaves; the exit code. The lines in `first` come before what is typed."""
    return Repl(session, config, surroundings, color=color).run(first)
