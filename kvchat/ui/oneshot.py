"""Questions in, answers out, without a dialogue. stdout carries answers, stderr everything else."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from kvchat.backends.base import (
    Answer,
    Backend,
    Done,
    Event,
    FinishReason,
    ModelInfo,
    Notice,
    Phase,
    Prefilling,
    Text,
)
from kvchat.chat.session import Session, new_id
from kvchat.errors import EXIT_INTERRUPTED, UsageError, reason_of
from kvchat.ui.cache_watch import CacheWatch
from kvchat.ui.clean import CleanStream, for_data, for_messages, sanitize
from kvchat.ui.cost import check_length
from kvchat.ui.endings import ending
from kvchat.ui.files import MAX_INPUT_BYTES
from kvchat.ui.progress import WaitingBar
from kvchat.ui.render import reuse_text, stats_line, weights_text

if TYPE_CHECKING:
    from kvchat.ui.markdown import MarkdownBlocks


@dataclass(frozen=True, slots=True)
class Manner:
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


def one_message(prompt: str | None, piped: str) -> list[str]:
    """What is asked: the piped text first, then the prompt. Raises UsageError when that is nothing."""
    message = "\n\n".join(part for part in (piped.strip("\n"), prompt or "") if part.strip())
    if not message:
        raise UsageError("nothing to ask", "give a prompt with -p, or pipe text in")
    return [message]


def messages_of(lines: Iterable[str]) -> Iterator[str]:
    """The user messages of a `--turns` file: one a line, or a JSON string a line; empty lines are skipped."""
    for number, raw in enumerate(lines):
        line = (raw if number else raw.removeprefix("\ufeff")).rstrip("\r\n")
        if not line.strip():
            continue
        try:
            value = json.loads(line) if line.lstrip().startswith('"') else line
        except ValueError:
            value = line
        if value.strip():
            yield value


def open_turns(name: str, stdin: TextIO) -> Iterator[str]:
    """The lines of `--turns FILE`, or of stdin for `-`. Raises UsageError."""
    if name == "-":
        return _lines(stdin)
    try:
        return _lines(Path(name).expanduser().open(encoding="utf-8", errors="replace"))
    except (OSError, RuntimeError, ValueError) as error:
        why, remedy = reason_of(error), "see --turns in kvchat --help"
        raise UsageError(f"can't read the turns in {name}: {why}", remedy) from None


def _lines(stream: TextIO) -> Iterator[str]:
    while line := stream.readline(MAX_INPUT_BYTES + 1):
        if len(line) > MAX_INPUT_BYTES:
            raise UsageError(f"a line has more than {MAX_INPUT_BYTES} characters", "shorten it")
        yield line


def answer_json(session: Session, answer: Answer, info: ModelInfo, *, tokens: bool = False) -> dict[str, Any]:
    """One answer as the object that `--json` prints."""
    usage, tip = answer.usage, session.tip
    report: dict[str, Any] = {
        "id": tip.id if tip and tip.answer is answer else new_id(),
        "session_id": session.id,
        "model": info.name,
        "response": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": str(answer.finish_reason),
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        },
        "timings": asdict(answer.timings),
        "cache": asdict(answer.cache)
        | {"policy": info.reuse, "continuation": info.continuation, "verdict": info.verdict},
    }
    report["weights"] = {"mode": info.weights, "why": info.weights_why}
    if info.adapter:
        report["adapter"] = info.adapter
    if tokens:
        report["tokens"] = {"prompt": list(answer.prompt), "completion": list(answer.completion)}
    return report


class OneShot:
    """Asks messages of one session in order and writes the answers."""

    def __init__(self, session: Session, manner: Manner, *, stdout: TextIO, stderr: TextIO) -> None:
        self.session = session
        self.manner = manner
        self._stdout = for_data(stdout, is_json=manner.json)
        self._stderr = for_messages(stderr, is_json=manner.json)
        self._reasoning = False
        self._has_told = False
        self._watch = CacheWatch(session)
        self._dim = stderr.isatty() and manner.color
        self._bar = WaitingBar(session.backend, stderr, shown=stderr.isatty() and not manner.quiet)

    def run(self, messages: Iterable[str]) -> int:
        """Answer all messages; the exit code. Raises KvchatError where an answer fails."""
        with interruptible(self.session.backend):
            for number, message in enumerate(messages):
                if number:
                    self.session.prepare()
                answer = self._ask(message)
                self._watch.look()
                if answer.finish_reason is FinishReason.CANCELLED:
                    return EXIT_INTERRUPTED
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

    def _printer(self) -> _AnswerPrinter:
        is_terminal = self._stdout.isatty()
        if not self.manner.markdown or self.manner.json:
            return _AnswerPrinter(self._stdout, muted=self.manner.json)
        from kvchat.ui.markdown import MarkdownBlocks

        blocks = MarkdownBlocks(color=self.manner.color, styled=is_terminal or self.manner.styled)
        return _MarkdownPrinter(self._stdout, blocks)

    def _show(self, event: Event, printer: _AnswerPrinter) -> None:
        if isinstance(event, Prefilling):
            self._bar.prefilling(event)
        elif isinstance(event, Notice):
            self._bar.stop()
            self._note(f"kvchat: {event.message}\n")
        elif isinstance(event, Text) and not event.reasoning:
            self._bar.stop()
            self._end_reasoning()
            printer.write(event.text)
        elif (
            isinstance(event, Text) and self.manner.reasoning and not (self.manner.json or self.manner.quiet)
        ):
            self._bar.stop()
            self._note(event.text, dim=True)
            self._reasoning = True

    def _end_reasoning(self) -> None:
        if self._reasoning:
            self._note("\n")
        self._reasoning = False

    def _report(self, answer: Answer) -> None:
        info = self.session.backend.info()
        if self.manner.json:
            report = answer_json(self.session, answer, info, tokens=self.manner.tokens)
            self._stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
            self._stdout.flush()
        why = ending(self.session, answer, info.context).why
        if why and not (self.manner.quiet or self.manner.json):
            self._note(f"kvchat: {why}\n")
        if not self.manner.quiet and (self._stderr.isatty() or self.manner.verbose):
            columns = shutil.get_terminal_size().columns if self._stderr.isatty() else 0
            self._note(stats_line(answer, info.context, columns) + "\n", dim=True)
        if self.manner.verbose and not self._has_told:
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


class _AnswerPrinter:
    """Writes an answer as it comes and ends it with exactly one newline."""

    def __init__(self, out: CleanStream, *, muted: bool) -> None:
        self._out = out
        self._muted = muted
        self._held = ""
        self._begun = False

    def write(self, text: str) -> None:
        """Write what is new, but hold newlines back: they may be the answer's last."""
        text = self._held + text
        body = text.rstrip("\n")
        self._held = text[len(body) :]
        if body and not self._muted:
            self._out.write(body)
            self._out.flush()
            self._begun = True

    def end(self, *, complete: bool) -> None:
        """Close the line; an answer that failed before its first text has none."""
        if not self._muted and (complete or self._begun):
            self._out.write("\n")
            self._out.flush()


class _MarkdownPrinter(_AnswerPrinter):
    """Writes an answer rendered, each block as soon as it is finished."""

    def __init__(self, out: CleanStream, blocks: MarkdownBlocks) -> None:
        super().__init__(out, muted=False)
        self._blocks = blocks
        self._behind = ""

    def write(self, text: str) -> None:
        """Take what is new, write what is finished."""
        self._blocks.take(sanitize(text, behind=self._behind))
        self._behind = text[-1:] or self._behind
        self._print(whole=False)

    def end(self, *, complete: bool) -> None:
        """Write the rest."""
        self._print(whole=True)
        if complete and not self._begun:
            super().end(complete=True)

    def _print(self, *, whole: bool) -> None:
        lines = self._blocks.finished(shutil.get_terminal_size().columns, whole=whole)
        if lines:
            self._out.write_styled(lines + "\n")
            self._out.flush()
            self._begun = True
