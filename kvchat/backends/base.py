"""What the chat and the terminal see of a model: turns in, events out. Knows no torch, no terminal, no process.

A backend holds no conversation: each call carries all of it. Everything here is a value that crosses a pipe as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from kvchat.backends.events import Ahead as Ahead
from kvchat.backends.events import Answer as Answer
from kvchat.backends.events import CacheReport as CacheReport
from kvchat.backends.events import Candidate as Candidate
from kvchat.backends.events import Done as Done
from kvchat.backends.events import Encoded as Encoded
from kvchat.backends.events import Event as Event
from kvchat.backends.events import FinishReason as FinishReason
from kvchat.backends.events import Notice as Notice
from kvchat.backends.events import Prefilling as Prefilling
from kvchat.backends.events import Scored as Scored
from kvchat.backends.events import Text as Text
from kvchat.backends.events import Timings as Timings
from kvchat.backends.events import Usage as Usage
from kvchat.backends.turn import Role as Role
from kvchat.backends.turn import Turn as Turn
from kvchat.backends.turn import time_of as time_of
from kvchat.backends.turn import well_formed as well_formed

if TYPE_CHECKING:
    from kvchat.backends.inspection import CacheView
    from kvchat.config import Config


class Reach(StrEnum):
    """How far to compute ahead for a message that is being typed: up to where it can't change any more, all of its
    prompt, or the beginning of its answer too."""

    TYPED = "typed"
    WHOLE = "whole"
    BEGUN = "begun"


class Phase(StrEnum):
    """What the engine is doing now."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Options:
    """How to answer; None leaves a value to the model's own generation_config.

    `temperature` 0 is greedy. `max_tokens` None is the model's own limit, or MAX_TOKENS for one that has none. `think`
    is for models that can think before they answer. With `repeat_stop` an answer that goes round in circles is stopped.
    With `top_logprobs` each token comes with its score, and those of so many likeliest ones.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    think: bool | None = None
    repeat_stop: bool = True
    top_logprobs: int | None = None


DEFAULTS = Options()
"""All is left to the model."""
NEVER_BEGUN = "it was cancelled before it began"
"""What the report of an answer says of which nothing was computed."""
MAX_TOKENS = 4096
"""Longest answer where neither the user nor the model sets a limit."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What one call may use of what was computed before, and what may stay of it.

    `mode` is `rw` to use and store, `ro` to use only, `off` to compute everything. Unless it `saves`, nothing of it
    reaches the disk, or blocks that others could take up. An engine that was started with less has no more to give.
    """

    mode: str = "rw"
    saves: bool = True

    @classmethod
    def from_config(cls, config: Config) -> Keeping:
        """What the user's settings say."""
        return cls(config.cache.mode, config.chat.save)


@dataclass(frozen=True, slots=True)
class Status:
    """What the engine is doing, for a toolbar. `done` and `total` are tokens or bytes; `total` 0 means unknown."""

    phase: Phase
    detail: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The loaded model. `context` is in tokens, `kv_bytes_per_token` in bytes, `load_ms` in milliseconds.

    `reuse` is how much of what was computed can be taken up again: `blocks`, `snapshots` or `none`; `continuation` how
    it is gone on from there: `chunk`, `one_token` or `restart`; `verdict` what the probe at the first load found. Where
    it `is_exact` an answer has the same bits with and without the cache; else they are the same but for rounding.
    `template` is what its chat template does to a conversation's past: `append-safe` keeps it, `reasoning-stripping`
    drops the reasoning of answers, `rewriting` changes more. `weights` is what decoding reads, `weights_why` the reason
    in a few words. `adapter` is the folder of one that is in its weights.
    So many conversations as `num_at_once` are answered at the same time, and with 1 one after the other.
    A template that `takes_tools` tells the model of them; `stop_ids` are the tokens that end an answer.
    """

    name: str
    architecture: str
    dtype: str
    device: str
    context: int
    num_parameters: int
    kv_bytes_per_token: int
    reuse: str
    tokenizer: str
    load_ms: float
    defaults: Options = field(default_factory=Options)
    template: str = "append-safe"
    weights: str = "native"
    weights_why: str = ""
    adapter: str = ""
    continuation: str = "chunk"
    verdict: str = ""
    is_exact: bool = False
    takes_tools: bool = False
    stop_ids: tuple[int, ...] = ()
    num_at_once: int = 1


class Backend(Protocol):
    """A model that answers conversations. `status`, `cancel` and `close` may be called from any thread."""

    def start(self) -> None:
        """Begin to load the model in the background; does nothing when it is loading or loaded."""

    def status(self) -> Status:
        """What the engine does now; never waits."""

    def info(self) -> ModelInfo:
        """The loaded model. Waits for it; raises KvchatError when it can't be loaded."""

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        """Answer a history that ends with a user's turn, or go on with the unfinished answer that it ends with.

        The last event is `Done`; for an answer that goes on, it has the new text and ids alone.

        Closing the iterator cancels the answer. Raises KvchatError: ModelUnavailableError, ContextOverflowError,
        OutOfMemoryError, EngineDiedError.
        """

    def warm(self, history: Sequence[Turn], options: Options = DEFAULTS) -> Iterator[Event]:
        """Compute and store a conversation's KV ahead of use, a system prompt's alone or up to an answer's beginning.

        Yields `Prefilling` events. Of the options only `think` counts: it may change what a template writes.
        """

    def prepare(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        """Compute ahead what every next prompt of a conversation begins with, as long as nobody asks.

        Yields `Prefilling` events; none where nothing would be gained, because all that was said is live. It ends as
        soon as an answer is asked for; what was computed stays.
        """

    def ahead(self, history: Sequence[Turn], options: Options, reach: Reach) -> Iterator[Ahead]:
        """Compute ahead for a message that is being typed, the user's turn that the history ends with, as far as `reach`
        says and as long as nobody asks for anything else. Another call takes the place of the one before.

        Yields `Ahead` events. An answer to this very history and options takes up what is there; whatever else is asked
        leaves no trace of it, and a history without such a turn only drops it.
        """

    def cache(
        self, history: Sequence[Turn], options: Options = DEFAULTS, *, has_rows: bool = True
    ) -> CacheView:
        """What is cached of a conversation, and the cache's totals. Waits for the model and for a running answer.

        Of the options only `think` counts. Without rows it costs one rendering of the conversation.
        """

    def cancel(self) -> None:
        """End what was asked here and is being made; an answer finishes with `FinishReason.CANCELLED`."""

    def count(self, text: str) -> int:
        """How many tokens a text is."""

    def close(self) -> None:
        """End the engine; what it still has to write is written first, within a bound."""
