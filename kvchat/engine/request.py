"""What is asked of the engine, and the events in which it answers: values alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from kvchat.cache.base import Ended
from kvchat.engine.sampling import SamplingParams
from kvchat.models.reuse import ReusePolicy


class Finish(StrEnum):
    """Why generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, of tokens of either kind. `stop_ids` end the answer and are not part of it; `max_tokens` bounds the answer.

    The first `shared` tokens are what many prompts begin with (a system prompt): they are stored as soon as the
    answer has begun, and kept longest. Without `reuse` nothing is looked up, and every token is computed; unless it
    `stores` nothing of it is given to the cache. With `top_logprobs` each token comes with its score, and those of so many
    likeliest ones.
    """

    prompt: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop_ids: frozenset[int] = frozenset()
    shared: int = 0
    reuse: bool = True
    stores: bool = True
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Reuse:
    """Where the prompt's state came from, in tokens, of the cache by tier; `kv_load_s` is what fetching it took.

    `ended` is why the cache reaches no further; `skipped` tokens were held but faster to compute than to load, or, where
    the prompt `is_renewed`, than to go on from one by one. `policy` is the model's.
    """

    live: int
    tiers: Mapping[str, int] = field(default_factory=dict)
    kv_load_s: float = 0.0
    ended: Ended = Ended.OFF
    skipped: int = 0
    policy: ReusePolicy = ReusePolicy.BLOCKS
    is_renewed: bool = False

    @property
    def num_tokens(self) -> int:
        """All tokens that need no computing."""
        return self.live + sum(self.tiers.values())


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of the `total` tokens to compute are in; `reuse` says what was there before."""

    done: int
    total: int
    reuse: Reuse


@dataclass(frozen=True, slots=True)
class Score:
    """What the model thought of a token, before temperature and penalties: the logarithm of its share of all. `top` are
    the ids and logarithms of the likeliest, the likeliest first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token id, with its score where that was asked for."""

    id: int
    score: Score | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event. Times in seconds; `prefilled` tokens were computed of the prompt."""

    reason: Finish
    reuse: Reuse
    prefilled: int
    prefill_s: float
    decode_s: float
    num_generated: int


def never() -> bool:
    """What is asked of whoever is neither cancelled nor paused."""
    return False


@dataclass(frozen=True, slots=True)
class Wanting:
    """The next tokens are wished for, to be computed with those of other answers before this one is gone on with."""


WANTING = Wanting()
EngineEvent = Progress | Token | Wanting | Finished
