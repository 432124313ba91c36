"""One answer of a server: its events read one by one, what it reported, and what came of it however it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvchat.backends import base
from kvchat.backends.base import Answer, Event, FinishReason, Options, Phase, Role, Status, Turn
from kvchat.backends.remote.chunks import Chunk, Counts
from kvchat.backends.remote.dialects import Dialect
from kvchat.backends.remote.ledger import UNSAID, Asked, Ledger, Sent, server_report
from kvchat.backends.remote.reading import IdsReading, TextReading
from kvchat.backends.remote.refusals import BrokenError, is_too_long
from kvchat.errors import NO_ROOM, ContextOverflowError, KvchatError

if TYPE_CHECKING:
    from kvchat.backends.remote.tokens import Prompt, Tokens

_DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Setting:
    """What an answer is made with: the remote's name for errors, its form, tokenizer and ledger, and what hides its key."""

    where: str
    dialect: Dialect
    ledger: Ledger
    tokens: Tokens | None = None
    without_key: Callable[[str], str] = str


class Answering:
    """One answer. `prompt` has the ids that were sent, None where text was."""

    def __init__(
        self, setting: Setting, turns: tuple[Turn, ...], options: Options, prompt: Prompt | None
    ) -> None:
        self.setting = setting
        self.turns = turns
        self.think = options.think
        self.prompt = prompt
        unfinished = turns[-1].text if turns[-1].role is Role.ASSISTANT else ""
        if prompt is not None and setting.tokens is not None:
            self.reading: TextReading = IdsReading(setting.tokens, prompt, options.stop)
        else:
            self.reading = TextReading(unfinished)
        self.counts = Counts()
        self.finish: str | None = None
        self.server_prompt: tuple[int, ...] = ()
        self.num_texts = 0
        self.started = time.perf_counter()
        self.first_at: float | None = None
        self.last_at = self.started

    @property
    def has_begun(self) -> bool:
        """Whether something of the answer came."""
        return bool(self.reading.ids or self.reading.text or self.reading.reasoning or self.num_texts)

    def events(self, stream: Iterable[str], show: Callable[[Status], None]) -> Iterator[Event]:
        """The reader's events, until the answer is complete or a stop string ends it. Raises KvchatError."""
        for data in stream:
            if data.strip() == _DONE:
                self.finish = self.finish or "stop"
                return
            chunk = self._read(data)
            if chunk.progress:
                yield from self._progress(chunk.progress, show)
            for event in self.reading.take(chunk):
                if self.first_at is None and isinstance(event, base.Text):
                    self.first_at = time.perf_counter()
                    show(Status(Phase.DECODING))
                yield event
            self._note(chunk)
            if self.reading.is_stopped:
                self.finish = "stop"
                return

    def rest(self) -> Iterator[Event]:
        """What was held back at the end."""
        yield from self.reading.finish()
        differs = self._differs
        if differs is not None:
            yield base.Notice(
                f"{self.setting.where} computed other tokens than it was sent, from token {differs} on;"
                ' send = "text" in its settings lets it make its own'
            )

    def answer(self, cut: FinishReason | None = None) -> Answer:
        """What came of it; of one that was `cut` off as far as it is."""
        reading, counts = self.reading, self.counts
        completion = reading.completion
        prompt_ids = self.prompt.ids if self.prompt else ()
        num_completion = len(completion) or counts.completion or self.num_texts
        num_prompt = len(prompt_ids) or counts.prompt or 0
        cached = None if counts.cached is None else min(counts.cached, num_prompt)
        asked = Asked(self.turns, num_prompt, prompt_ids or self._ids_of_text())
        answer = Answer(
            text=reading.text,
            reasoning=reading.reasoning.strip(),
            prompt=prompt_ids,
            completion=completion,
            tokenizer=self.setting.tokens.id if self.setting.tokens and completion else "",
            finish_reason=cut or FinishReason(self.finish or "stop"),
            usage=base.Usage(num_prompt, num_completion, cached or 0),
            timings=self._timings(num_prompt, num_completion, cached or 0),
            cache=self._report(asked, cached),
            encoded=self.prompt.encoded if self.prompt else (),
            retracted=reading.retracted,
        )
        self._keep(answer, asked, cached)
        return answer

    @property
    def _differs(self) -> int | None:
        """The first token that the server computed otherwise than it was sent; None where all are alike, or it says none."""
        if self.prompt is None or not self.server_prompt or self.server_prompt == self.prompt.ids:
            return None
        pairs = zip(self.prompt.ids, self.server_prompt, strict=False)
        shorter = min(len(self.prompt.ids), len(self.server_prompt))
        return next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), shorter)

    def _read(self, data: str) -> Chunk:
        where = self.setting.where
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise BrokenError(f"{where} sent something that is no JSON", _GO_ON) from None
        if not isinstance(event, dict):
            raise BrokenError(f"{where} sent something that is no event", _GO_ON)
        chunk = self.setting.dialect.read(event)
        if chunk.error is not None:
            said = self.setting.without_key(chunk.error)
            if is_too_long(said) and not self.has_begun:
                raise ContextOverflowError(f"{where} can't take so much: {said}", "start anew with /clear")
            raise BrokenError(f"{where} failed: {said}", _GO_ON)
        return chunk

    def _note(self, chunk: Chunk) -> None:
        if chunk.text or chunk.reasoning or chunk.ids:
            self.num_texts += 1
            self.last_at = time.perf_counter()
        if chunk.prompt_ids:
            self.server_prompt = chunk.prompt_ids
        self.finish = chunk.finish or self.finish
        self.counts = self.counts.updated(chunk.counts)

    def _progress(self, progress: tuple[int, int, int], show: Callable[[Status], None]) -> Iterator[Event]:
        """llama-server counts what is cached as done."""
        done, total, cached = progress
        done, total = max(0, done - cached), max(0, total - cached)
        show(Status(Phase.PREFILLING, "", done, total))
        yield base.Prefilling(done, total, cached)

    def _timings(self, num_prompt: int, num_completion: int, cached: int) -> base.Timings:
        """The server's own times where it tells them; else those that we waited."""
        counts = self.counts
        first_at = self.first_at or self.last_at
        ttft_ms = (first_at - self.started) * 1e3
        return base.Timings(
            load_ms=0.0,
            kv_load_ms=0.0,
            cache_n=cached,
            prompt_n=num_prompt - cached,
            prompt_ms=ttft_ms if counts.prompt_ms is None else counts.prompt_ms,
            predicted_n=num_completion,
            predicted_ms=counts.predicted_ms or (self.last_at - first_at) * 1e3,
            ttft_ms=ttft_ms,
        )

    def _report(self, asked: Asked, cached: int | None) -> base.CacheReport:
        tokens = self.setting.tokens
        decode = tokens.tokenizer.decode if tokens else None
        if cached is None and self.finish is None:
            return server_report(0, UNSAID, is_reported=False)
        return self.setting.ledger.report(asked, cached, self.retokenised, decode)

    @property
    def retokenised(self) -> int:
        """How many tokens of what was said before the server encoded otherwise, from the first such on; 0 if ids were sent
        or it does not tell its ids."""
        now = () if self.prompt is not None else self._ids_of_text()
        before = self.setting.ledger.held_before(self.turns) if now else ()
        differs = (at for at in range(min(len(before), len(now))) if before[at] != now[at])
        first = next(differs, None)
        return 0 if first is None else len(before) - first

    def _ids_of_text(self) -> tuple[int, ...]:
        """The ids that the server made of the text: as it says, or as this tokenizer, which agrees with it, does."""
        if not self.server_prompt and self.setting.tokens is not None and self.reading.ids:
            self.server_prompt = self.setting.tokens.retokenised(self.turns, self.think)
        return self.server_prompt

    def _keep(self, answer: Answer, asked: Asked, cached: int | None) -> None:
        """Note in the ledger what the server holds by now."""
        turns = self.turns
        said = answer.turn()
        if turns[-1].role is Role.ASSISTANT:
            before, turns = turns[-1], turns[:-1]
            tokens = (*before.tokens, *said.tokens) if before.tokens and said.tokens else None
            said = replace(
                said, text=before.text + said.text, reasoning=before.reasoning + said.reasoning, tokens=tokens
            )
        ids = (*asked.ids, *(answer.completion or self.reading.ids)) if asked.ids else ()
        usage = answer.usage
        sent = Sent((*turns, said), usage.total_tokens, ids)
        self.setting.ledger.note(sent, usage.prompt_tokens, cached, answer.timings.prompt_ms)


_GO_ON = "/continue goes on, or ask again"


def check_room(prompt: Prompt, context: int, name: str) -> None:
    """Raise ContextOverflowError for a prompt that leaves no room for an answer, before it is sent."""
    if context and len(prompt.ids) >= context:
        raise ContextOverflowError(
            f"the conversation is {len(prompt.ids)} tokens long, the context of {name} has {context}",
            NO_ROOM,
        )


def kept(error: KvchatError) -> base.Notice:
    """What is said of an answer that broke off."""
    return base.Notice(f"{error.message}; what came is kept, {error.remedy}")
