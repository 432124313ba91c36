"""A server's chunks -> what a reader gets: ids become text, reasoning is told apart, stop strings end it. Sends nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvchat.backends import base
from kvchat.backends.base import Event
from kvchat.backends.remote.chunks import Chunk
from kvchat.backends.text import Passage, ReasoningSplitter, StopScanner
from kvchat.models.text.reasoning import REASONING_MARKS, ReasoningMarks

if TYPE_CHECKING:
    from kvchat.backends.remote.tokens import Prompt, Tokens

_PLAIN_FIRST = sorted(REASONING_MARKS, key=lambda marks: bool(marks.lead or marks.tail))
_THINK = next(marks for marks in _PLAIN_FIRST if marks.start == "<think>")


class TextReading:
    """Of a server that sends text: reasoning comes in a field of its own, or between marks at the beginning."""

    def __init__(self, before: str) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.reasoning = ""
        self.is_stopped = False  # the server stops by itself
        self.retracted = 0
        self._held: str | None = "" if not before else None
        self._splitter = ReasoningSplitter(None)

    def take(self, chunk: Chunk) -> Iterator[Event]:
        """What is new to the reader."""
        if chunk.ids:
            self.ids += chunk.ids
        if chunk.reasoning:
            self._held = None  # it is told apart already
            yield from self._give(chunk.reasoning, is_reasoning=True)
        if chunk.text:
            yield from self._split(chunk.text)

    def finish(self) -> Iterator[Event]:
        """What was held back."""
        if self._held:
            held, self._held = self._held, None
            self._splitter = _splitter(_THINK)
            yield from self._pieces(self._splitter.feed(held))
        yield from self._pieces(self._splitter.finish())

    @property
    def completion(self) -> tuple[int, ...]:
        """None: of text the ids are not known."""
        return ()

    def _split(self, text: str) -> Iterator[Event]:
        """The text's pieces, as soon as it is certain by which marks its reasoning would be told."""
        if self._held is not None:
            self._held += text
            begun = self._held.lstrip()
            starts = [marks for marks in REASONING_MARKS if marks.start.startswith(begun) or not begun]
            chosen = next((marks for marks in _PLAIN_FIRST if begun.startswith(marks.start)), None)
            if chosen is None and starts:
                return
            text, self._held = self._held, None
            self._splitter = _splitter(chosen or _THINK)
        yield from self._pieces(self._splitter.feed(text))

    def _pieces(self, pieces: Sequence[Passage]) -> Iterator[Event]:
        for piece in pieces:
            if piece.recalls:
                yield base.Notice("what came so far was reasoning: the model ended it and had not begun it")
                self.reasoning, self.text = self.text + self._held_back(), ""
            yield from self._give(piece.text, is_reasoning=piece.is_reasoning)

    def _held_back(self) -> str:
        """What was kept from the reader for fear of a stop string."""
        return ""

    def _give(self, text: str, *, is_reasoning: bool) -> Iterator[Event]:
        if not text:
            return
        if is_reasoning:
            self.reasoning += text
        else:
            self.text += text
        yield base.Text(text, is_reasoning)


class IdsReading(TextReading):
    """Of a server that sends ids: they are the truth, and the text is what this tokenizer reads in them."""

    def __init__(self, tokens: Tokens, prompt: Prompt, stops: Sequence[str]) -> None:
        super().__init__("")
        self._held = None
        self._tokens = tokens
        self._unfinished = prompt.unfinished
        self._stream = tokens.tokenizer.stream()
        self._before = "".join(self._stream.push(token) for token in prompt.unfinished)
        self._shown = self._before  # all text up to where a stop string begins, marks included
        self._splitter = _splitter(prompt.marks, is_open=prompt.is_reasoning)
        said = "".join(piece.text for piece in self._splitter.feed(self._before) if not piece.is_reasoning)
        self._scanner = StopScanner(stops, said)
        self._is_over = False

    def take(self, chunk: Chunk) -> Iterator[Event]:
        new = chunk.ids or ()
        for token in new[len(self.ids) :] if chunk.is_total else new:
            if self._is_over or self.is_stopped:
                return
            if token in self._tokens.closing_ids:
                self._is_over = True
                return
            self.ids.append(token)
            yield from self._show(self._stream.push(token))

    def finish(self) -> Iterator[Event]:
        if not self.is_stopped:
            yield from self._show(self._stream.finish())
            yield from self._pieces(self._splitter.finish())
            yield from super()._give(self._scanner.finish(), is_reasoning=False)

    @property
    def completion(self) -> tuple[int, ...]:
        """The generated ids up to a stop string; where that began inside a token, the rest of the text encoded."""
        if not self.is_stopped:
            return tuple(self.ids)
        tokenizer, count = self._tokens.tokenizer, len(self.ids)
        while count and not self._shown.startswith(tokenizer.decode([*self._unfinished, *self.ids[:count]])):
            count -= 1
        rest = self._shown[len(tokenizer.decode([*self._unfinished, *self.ids[:count]])) :]
        return (*self.ids[:count], *(tokenizer.encode_as_text(rest) if rest else ()))

    def _show(self, text: str) -> Iterator[Event]:
        self._shown += text
        for piece in self._splitter.feed(text) if text else []:
            yield from self._pieces([piece])
            if self.is_stopped:
                self._shown = self._shown[: max(0, piece.end - self._scanner.rest)]
                self.retracted = self._scanner.retracted
                return

    def _held_back(self) -> str:
        return self._scanner.finish()

    def _give(self, text: str, *, is_reasoning: bool) -> Iterator[Event]:
        yield from super()._give(
            text if is_reasoning else self._scanner.feed(text), is_reasoning=is_reasoning
        )
        self.is_stopped = self._scanner.is_hit


def _splitter(marks: ReasoningMarks | None, *, is_open: bool = False) -> ReasoningSplitter:
    if marks is None:
        return ReasoningSplitter(None)
    return ReasoningSplitter((marks.start, marks.end), is_open=is_open, lead=marks.lead, tail=marks.tail)
