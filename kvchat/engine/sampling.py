"""Which token comes next: a chain of functions on logits, in transformers' order and with its results. Knows no text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from math import exp, isfinite, log

import torch

from kvchat.engine.token_rules import Ruler, TokenRules
from kvchat.models.kinds import ids_of

LogitsFunction = Callable[[torch.Tensor], torch.Tensor]
"""Logits [vocab] in float32 -> logits [vocab]; a token that is ruled out has -inf."""
NUCLEUS_TOKENS = 512
"""So many likeliest tokens are looked at first, and usually suffice."""
COLDEST = 1e-5
"""Below this temperature the likeliest token is as good as certain, and dividing by it would leave float32's range."""

_MOST_GROWTH = 40.0


class NoNumbersError(ArithmeticError):
    """The model's scores are NaN or infinite: there is nothing to choose by."""


@dataclass(frozen=True, slots=True)
class Length:
    """How long an answer should get: behind `tokens` its ends grow likelier by `factor`, token after token; 1 does nothing."""

    tokens: int = 0
    factor: float = 1.0

    def growth(self, num_tokens: int) -> float:
        """What `factor` has grown to behind so many tokens; kept in a range that float32 can hold."""
        growth = max(0, num_tokens - self.tokens) * log(self.factor)
        return exp(min(growth, _MOST_GROWTH))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose. `temperature` 0 takes the likeliest token; `top_k` 0, `top_p` 1, `min_p` 0, `repetition_penalty` 1, a
    `length` of factor 1 and empty `rules` do nothing. The penalty leaves `ends` alone: what ended every message before is no
    repetition, and an answer that may not say it again goes on and on."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    ends: frozenset[int] = frozenset()
    length: Length = field(default_factory=Length)
    rules: TokenRules = field(default_factory=TokenRules)


class Sampler:
    """Chooses token after token of one answer behind a prompt of tokens. The repetition penalty covers the prompt and what was chosen."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], device: torch.device) -> None:
        self.params = params
        seen = sorted(set(ids_of(prompt)) - params.ends) if params.repetition_penalty != 1.0 else ()
        self._seen = torch.tensor(seen, dtype=torch.long, device=device)
        self._ruler = Ruler(params.rules, ids_of(prompt)) if params.rules else None
        self._ends = torch.tensor(sorted(params.ends), dtype=torch.long, device=device)
        self._num_chosen = 0
        self._generator = torch.Generator(device=device)
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token id from the last position's logits, [vocab] in float32. Raises NoNumbersError."""
        if self.params.repetition_penalty != 1.0:
            logits = penalise_repetition(logits, self._seen, self.params.repetition_penalty)
        length = self.params.length
        if length.factor != 1.0 and self._num_chosen > length.tokens:
            logits = favour(logits, self._ends, length.growth(self._num_chosen))
        if self._ruler is not None:
            logits = rule_out(logits, self._ruler.ruled_out())
        token = likeliest(logits) if self.params.temperature < COLDEST else self._draw(logits)
        if self.params.repetition_penalty != 1.0:
            self._seen = torch.cat([self._seen, self._seen.new_tensor([token])])
        if self._ruler is not None:
            self._ruler.follow(token)
        self._num_chosen += 1
        return token

    def _draw(self, logits: torch.Tensor) -> int:
        if not isfinite(float(logits.max())):  # NaN is greater than all
            raise NoNumbersError
        for function in chain(self.params):
            logits = function(logits)
        return drawn(
            logits.softmax(-1), float(torch.rand((), generator=self._generator, device=logits.device))
        )


def drawn(shares: torch.Tensor, lot: float) -> int:
    """The token of `shares`, [vocab], at which their sums reach `lot`, in [0, 1), of the whole. A few percent of what drawing
    with `torch.multinomial` takes, which asks its generator for a number for each token."""
    sums = shares.cumsum(-1, dtype=torch.float64)
    whole = sums[-1:]
    wanted = torch.cat([torch.searchsorted(sums, whole * lot, right=True), torch.searchsorted(sums, whole)])
    return int(wanted.min())  # no lot, rounded up, is beyond the last that has a share


def likeliest(logits: torch.Tensor) -> int:
    """The first of the greatest of [vocab]. numpy finds it in a sixth of torch's time on a CPU. Raises NoNumbersError."""
    scores = logits.numpy() if logits.device.type == "cpu" else logits
    token = int(scores.argmax())
    if not isfinite(float(scores[token])):  # NaN is greater than all
        raise NoNumbersError
    return token


def rule_out(logits: torch.Tensor, tokens: Collection[int]) -> torch.Tensor:
    """Logits without `tokens`, those that the vocabulary does not have left aside; unchanged where nothing would be left."""
    known = [token for token in tokens if 0 <= token < len(logits)]
    if not known:
        return logits
    left = logits.index_fill(0, torch.tensor(known, device=logits.device), -torch.inf)
    return left if isfinite(float(left.max())) else logits


def chain(params: SamplingParams) -> list[LogitsFunction]:
    """The functions that `params` ask for, in transformers' order: temperature, top-k, top-p, min-p."""
    functions: list[LogitsFunction] = []
    if params.temperature not in (0.0, 1.0):
        functions.append(lambda logits: logits / params.temperature)
    if params.top_k > 0:
        functions.append(lambda logits: keep_top_k(logits, params.top_k))
    if params.top_p < 1.0:
        functions.append(lambda logits: keep_top_p(logits, params.top_p))
    if params.min_p > 0.0:
        functions.append(lambda logits: keep_min_p(logits, params.min_p))
    return functions


def penalise_repetition(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make the tokens `seen` (ids, may repeat) less likely by `penalty` (CTRL, Keskar et al. 2019)."""
    scores = logits[seen]
    return logits.index_put((seen,), torch.where(scores < 0, scores * penalty, scores / penalty))


def favour(logits: torch.Tensor, tokens: torch.Tensor, factor: float) -> torch.Tensor:
    """Make `tokens` (ids) likelier by what their logits' size grows by `factor`, as transformers' length penalty does."""
    known = tokens[(tokens >= 0) & (tokens < len(logits))]
    scores = logits[known]
    return logits.index_put((known,), scores + scores.abs() * (factor - 1))


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Rule out all but the `k` likeliest tokens; ties with the last of them stay."""
    least = logits.topk(min(k, logits.shape[-1])).values[-1]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches `p` (nucleus, Holtzman et al. 2020).

    Sorts a few of the likeliest, and only where these don't reach it the whole vocabulary.
    """
    shares = logits.softmax(-1)
    values, order = shares.topk(min(NUCLEUS_TOKENS, len(shares)))
    if float(values.sum()) < p:
        values, order = shares.sort(descending=True, stable=True)
    before = values.cumsum(-1) - values
    kept = order[: max(1, int((before < p).sum()))]
    return torch.full_like(logits, -torch.inf).index_copy(0, kept, logits[kept])


def keep_min_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Rule out tokens less likely than `p` times the likeliest one (min-p, Nguyen et al. 2024)."""
    probabilities = logits.softmax(-1)
    ruled_out = probabilities < p * probabilities.max()
    ruled_out[logits.argmax()] = False
    return logits.masked_fill(ruled_out, -torch.inf)
