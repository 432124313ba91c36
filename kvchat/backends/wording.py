"""The tokens of one answer as its reader gets them: text, reasoning told apart, and an end where a stop string begins."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import takewhile

from kvchat.backends.base import Event, Notice, Scored, Text
from kvchat.backends.repetition import RepetitionWatch
from kvchat.backends.text import Passage, ReasoningSplitter, StopScanner
from kvchat.models.text.tokenizer import ChatTokenizer


class Wording:
    """One answer, told token by token. `begun` are the ids of an unfinished answer that it goes on with; `repetition` ends one that loops."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        splitter: ReasoningSplitter,
        stops: Sequence[str],
        begun: Sequence[int],
        repetition: RepetitionWatch | None = None,
    ) -> None:
        self.ids: list[int] = []
        self.scores: list[Scored] = []
        self.text = self.reasoning = ""
        self.first_text_at: float | None = None
        self._num_told = 0  # ids that some text was given for
        self._tokenizer = tokenizer
        self._splitter = splitter
        self._stream = tokenizer.stream()
        self._begun_ids = begun
        self._begun = self._all = "".join(map(self._stream.push, begun))
        shown = "".join(part.text for part in splitter.feed(self._begun) if not part.is_reasoning)
        self._scanner = StopScanner(stops, shown)
        self._repetition = repetition

    @property
    def is_over(self) -> bool:
        """Whether a stop string has come, or the text goes round in circles."""
        return self._scanner.is_hit or self.is_looping

    @property
    def is_looping(self) -> bool:
        """Whether it goes round in circles, if anybody watches that."""
        return self._repetition is not None and self._repetition.is_looping

    @property
    def stop_text(self) -> str:
        """The stop string that has come; empty before."""
        return self._scanner.stop

    @property
    def retracted(self) -> int:
        """How many of the last characters of the unfinished answer belong to the stop string."""
        return self._scanner.retracted

    def tell(self, token: int, scored: Scored | None = None) -> Iterator[Event]:
        """What the next token makes certain. Either all tokens are scored or none."""
        self.ids.append(token)
        if scored is not None:
            self.scores.append(scored)
        yield from self._show(self._stream.push(token))

    def rest(self) -> Iterator[Event]:
        """What is still held back at the end."""
        if not self._scanner.is_hit:
            yield from self._show(self._stream.finish())
            yield from self._tell_apart(self._splitter.finish())
            yield from self._give(self._scanner.finish())

    def shown_ids(self) -> list[int]:
        """The generated ids up to the stop string; where it began inside a token, the rest of the text encoded."""
        if not self._scanner.is_hit:
            return self.ids
        tokenizer, count = self._tokenizer, len(self.ids)
        while count and not self._all.startswith(self._decoded(count)):
            count -= 1
        rest = self._all[len(self._decoded(count)) :]
        return [*self.ids[:count], *(tokenizer.encode_as_text(rest) if rest else ())]

    def shown_scores(self, shown: Sequence[int]) -> tuple[Scored, ...]:
        """Those of the `shown` ids that were generated as they are."""
        pairs = zip(shown, self.scores, strict=False)
        return tuple(scored for _, scored in takewhile(lambda pair: pair[0] == pair[1].token.id, pairs))

    def _decoded(self, count: int) -> str:
        return self._tokenizer.decode([*self._begun_ids, *self.ids[:count]])

    def _show(self, text: str) -> Iterator[Event]:
        self._all += text  # marks included; up to where a stop string begins
        yield from self._tell_apart(self._splitter.feed(text) if text else [])

    def _tell_apart(self, passages: Sequence[Passage]) -> Iterator[Event]:
        for one in passages:
            if one.recalls:
                yield Notice("what came so far was reasoning: the model ended it and had not begun it")
                self.reasoning, self.text = self.text + self._scanner.finish(), ""
            yield from self._give(
                one.text if one.is_reasoning else self._scanner.feed(one.text), one.is_reasoning
            )
            if self._scanner.is_hit:
                self._all = self._all[: max(len(self._begun), one.end - self._scanner.rest)]
                return

    def _give(self, text: str, is_reasoning: bool = False) -> Iterator[Event]:
        if not text:
            return
        if is_reasoning:
            self.reasoning += text
        else:
            self.text += text
        if self._repetition is not None:
            self._repetition.feed(text)
        self.first_text_at = self.first_text_at or time.perf_counter()
        told, self._num_told = self._num_told, len(self.ids)
        yield Text(text, is_reasoning, tuple(self.ids[told:]), tuple(self.scores[told:]))
