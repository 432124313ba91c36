"""Questions in, answers out, without a dialogue. stdout carries answers, stderr everything else."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TextIO

from kvchat.backends.base import (
    Answer,
    Backend,
    Done,
    Event,
    FinishReason,
    Notice,
    Phase,
    Prefilling,
    Text,
)
from kvchat.chat.session import Session
from kvchat.errors import EXIT_INTERRUPTED, KvchatError
from kvchat.ui.answer_json import answer_json
from kvchat.ui.answer_printer import AnswerPrinter, MarkdownPrinter
from kvchat.ui.cache_watch import CacheWatch
from kvchat.ui.clean import for_data, for_messages
from kvchat.ui.cost import check_length
from kvchat.ui.endings import ending
from kvchat.ui.progress import WaitingBar
from kvchat.ui.render import reuse_text, stats_line, weights_text


@dataclass(frozen=True, slots=True)
class Form:
    """How answers are written: as JSON (with token ids), quietly, with more on stderr, with colours.

    `markdown`: rendered instead of as it is; `styled`: with bold and colours even where no terminal reads it;
    `reasoning`: what the model thought is shown on stderr.
    """

    json: bool = False
    tokens: bool = False
    quiet: bool = False
    verbose: bool = False
    color: bool = True
    markdown: bool = False
    styled: bool = False
    reasoning: bool = True


class OneShot:
    """Asks messages of one session in order and writes the answers."""

    def __init__(self, session: Session, form: Form, *, stdout: TextIO, stderr: TextIO) -> None:
        self.session = session
        self.form = form
        self._stdout = for_data(stdout, is_json=form.json)
        self._stderr = for_messages(stderr, is_json=form.json)
        self._reasoning = False
        self._has_told = False
        self._watch = CacheWatch(session)
        self._dim = stderr.isatty() and form.color
        self._bar = WaitingBar(session.backend, stderr, shown=stderr.isatty() and not form.quiet)

    def run(self, messages: Iterable[str]) -> int:
        """Answer all messages; the exit code. Raises KvchatError where an answer fails."""
        with interruptible(self.session.backend):
            for number, message in enumerate(messages):
                if number:
                    self.session.prepare()
                answer = self._ask(message)
                self._watch.look()
                if answer.finish_reason.is_cut:
                    is_ours = answer.finish_reason is FinishReason.CANCELLED
                    return EXIT_INTERRUPTED if is_ours else KvchatError.exit_code
        return 0

    def _ask(self, message: str) -> Answer:
        check_length(self.session.backend, message)
        printer = self._printer()
        answer = None
        with closing(self.session.send(message)) as events, self._bar:
            try:
                for event in events:
                    self._show(event, printer)
                    answer = event.answer if isinstance(event, Done) else None
            finally:
                self._end_reasoning()
                printer.end(complete=answer is not None)
        assert answer is not None, "a backend ended an answer without Done"
        self._report(answer)
        return answer

    def _printer(self) -> AnswerPrinter:
        is_terminal = self._stdout.isatty()
        if not self.form.markdown or self.form.json:
            return AnswerPrinter(self._stdout, muted=self.form.json)
        from kvchat.ui.markdown import MarkdownBlocks

        blocks = MarkdownBlocks(color=self.form.color, styled=is_terminal or self.form.styled)
        return MarkdownPrinter(self._stdout, blocks)

    def _show(self, event: Event, printer: AnswerPrinter) -> None:
        if isinstance(event, Prefilling):
            self._bar.prefilling(event)
        elif isinstance(event, Notice):
            self._bar.stop()
            if event.is_warning or not self.form.quiet:
                self._note(f"kvchat: {event.message}\n")
        elif isinstance(event, Text) and not event.reasoning:
            self._bar.stop()
            self._end_reasoning()
            printer.write(event.text)
        elif isinstance(event, Text) and self.form.reasoning and not (self.form.json or self.form.quiet):
            self._bar.stop()
            self._note(event.text, dim=True)
            self._reasoning = True

    def _end_reasoning(self) -> None:
        if self._reasoning:
            self._note("\n")
        self._reasoning = False

    def _report(self, answer: Answer) -> None:
        info = self.session.backend.info()
        if self.form.json:
            report = answer_json(self.session, answer, info, tokens=self.form.tokens)
            self._stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
            self._stdout.flush()
        why = ending(self.session, answer, info.context).why
        if why and not (self.form.quiet or self.form.json):
            self._note(f"kvchat: {why}\n")
        if not self.form.quiet and (self._stderr.isatty() or self.form.verbose):
            columns = shutil.get_terminal_size().columns if self._stderr.isatty() else 0
            self._note(stats_line(answer, info.context, columns) + "\n", dim=True)
        if self.form.verbose and not self._has_told:
            self._has_told = True
            self._note(f"{weights_text(info)}\n{reuse_text(info)}\n", dim=True)

    def _note(self, text: str, *, dim: bool = False) -> None:
        if dim and self._dim:
            self._stderr.write_styled("\x1b[2m")
        self._stderr.write(text)
        if dim and self._dim:
            self._stderr.write_styled("\x1b[22m")
        self._stderr.flush()


@contextmanager
def interruptible(backend: Backend) -> Iterator[None]:
    """Ctrl-C ends the answer that is being made; at any other time, or twice, it raises KeyboardInterrupt."""
    asked = False

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or backend.status().phase not in (Phase.PREFILLING, Phase.DECODING):
            raise KeyboardInterrupt
        asked = True
        backend.cancel()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
