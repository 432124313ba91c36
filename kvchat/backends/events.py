"""What an answer is and what it costs, event by event, as values that cross a pipe as JSON. Knows no model and no process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kvchat.backends.turn import Role as Role
from kvchat.backends.turn import Turn as Turn
from kvchat.backends.turn import time_of as time_of


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    CANCELLED = "cancelled"
    BROKEN = "broken"

    @property
    def is_cut(self) -> bool:
        """Whether it was cut off: by the user, or because the way to its server broke."""
        return self in (FinishReason.CANCELLED, FinishReason.BROKEN)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. `prompt_tokens = cached_tokens + tokens prefilled`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Times of one answer, in milliseconds; `cache_n + prompt_n` are the prompt's tokens.

    `load_ms`: loading and warming up the model, once a process. `kv_load_ms`: bringing cached KV into the arena.
    `ttft_ms`: from the later of the turn's submission and the model being ready to its first text. Of the `draft_n`
    tokens that were guessed ahead, `draft_n_accepted` came true. Between the answer before and this message, `idle_n`
    tokens were computed ahead in `idle_ms`, while nobody waited. Of these, `ahead_n` in `ahead_ms` for messages that
    were being typed, prompts and answers; `ahead_used_n` of them served this one, which waited `ahead_saved_ms` less.
    """

    load_ms: float = 0.0
    kv_load_ms: float = 0.0
    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    ttft_ms: float = 0.0
    draft_n: int = 0
    draft_n_accepted: int = 0
    idle_n: int = 0
    idle_ms: float = 0.0
    ahead_n: int = 0
    ahead_used_n: int = 0
    ahead_ms: float = 0.0
    ahead_saved_ms: float = 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Decoding speed, in tokens a second; 0 when nothing was decoded."""
        return self.predicted_n / self.predicted_ms * 1e3 if self.predicted_ms > 0 else 0.0


@dataclass(frozen=True, slots=True)
class CacheReport:
    """Where the prompt's KV came from, in tokens, of the cache by tier, and why the rest had to be computed.

    `diverged_at` is the position of the first token that was not reused; `reason` says why in a few words, `was` and
    `now` are the texts around that position in what was computed before and in this prompt. `saved_s` is the time
    that computing the reused tokens would have taken, less what fetching them took. Of a server that does not say
    what it reused nothing `is_reported`.
    """

    live: int
    tiers: Mapping[str, int]
    diverged_at: int
    reason: str
    was: str = ""
    now: str = ""
    saved_s: float = 0.0
    codec: str = "raw"
    is_reported: bool = True


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids that an earlier answer's `text` has in this tokenizer; it came without them."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may stand somewhere, and `logprob`, the logarithm of the share that the model gave it there, before
    temperature and penalties. `text` is as it reads behind other text; its `bytes` are part of a character at times."""

    id: int
    text: str
    bytes: tuple[int, ...]
    logprob: float


@dataclass(frozen=True, slots=True)
class Scored:
    """A token that was generated, and the `top` of those that might have been, the likeliest first."""

    token: Candidate
    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, however it ended. `encoded` are the earlier ones that had no ids of its tokenizer.

    `kv_root` names the model's folder in the cache and `kv_tip` the last full block of prompt and answer there, both
    as hex; empty where nothing is stored. Of the unfinished answer that it goes on with, the last `retracted` characters
    turned out to be the beginning of a stop string. `stop_text` is the stop string that ended it, if one did. `scores` are
    those of `completion`, if they were asked for; of a last token that a stop string cut there is none.
    """

    text: str
    reasoning: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    tokenizer: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    cache: CacheReport
    kv_root: str = ""
    kv_tip: str = ""
    encoded: tuple[Encoded, ...] = ()
    retracted: int = 0
    stop_text: str = ""
    scores: tuple[Scored, ...] = ()

    @classmethod
    def cut_short(cls, why: str, *, text: str = "", reasoning: str = "", tokenizer: str = "") -> Answer:
        """What was shown of an answer that ended before anything is known of it, and why."""
        usage, report = Usage(0, 0, 0), CacheReport(0, {}, 0, why)
        reason = FinishReason.CANCELLED
        return cls(text, reasoning, (), (), tokenizer, reason, usage, Timings(), report)

    def turn(self) -> Turn:
        """The answer as a turn of the conversation; without ids if they were lost with the engine."""
        if not self.completion and self.text:
            return Turn(Role.ASSISTANT, self.text, self.reasoning)
        return Turn(Role.ASSISTANT, self.text, self.reasoning, self.completion, self.tokenizer)


@dataclass(frozen=True, slots=True)
class Prefilling:
    """So many of the tokens that have to be computed are done. Comes once before the first chunk, then after each."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True, slots=True)
class Text:
    """New text of the answer, never ending inside a character. `reasoning` marks the part before the answer.

    `ids` are those that were generated since the text before this, as far as this backend knows, and `scores` what they
    are if that was asked for.
    """

    text: str
    reasoning: bool = False
    ids: tuple[int, ...] = field(default=(), compare=False)
    scores: tuple[Scored, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Notice:
    """One line for the user that is not part of the answer: a warning, or that the engine was started again. One that is
    no warning only tells what was done."""

    message: str
    is_warning: bool = True


@dataclass(frozen=True, slots=True)
class Ahead:
    """Of a message that is being typed, `done` of the `total` tokens that its prompt has so far are computed, and behind
    all of them `begun` of its answer. While it `is_resting`, because the machine has other work, nothing is computed."""

    done: int
    total: int
    begun: int = 0
    is_resting: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The last event of every answer that did not raise."""

    answer: Answer


Event = Prefilling | Text | Notice | Done
