"""What integer weights cost in quality: next-token distributions against those of the weights as they are, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from kvchat.backends.loading import ReadyModel, load
from kvchat.bench.measure import check_room, english
from kvchat.config import Config
from kvchat.models.kinds import as_generated
from kvchat.models.loaded import LoadedModel

NUM_TOKENS = 10_000
WINDOW_TOKENS = 1_000
"""The text is read in pieces of so many tokens, each from an empty context."""
CHUNK_TOKENS = 100


@dataclass(frozen=True, slots=True)
class WeightsRow:
    """One way of computing: `how` is a weights mode and prefill or decode.

    `perplexity` on the text, and `reference`, that of float32 (or of prefill); `kl` and `kl_max` in nats; `top1` agreement; `error` is
    the largest difference of a logit, and `decided` how many likeliest tokens differ though the reference's lead is
    larger than that.
    """

    how: str
    positions: int
    perplexity: float
    reference: float
    kl: float
    kl_max: float
    top1: float
    error: float
    decided: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {"bench": "weights", **asdict(self)}

    def cells(self) -> dict[str, str]:
        """What a table shows."""
        return {
            "weights": self.how,
            "tokens": str(self.positions),
            "perplexity": f"{self.perplexity:.3f}",
            "of the reference": f"{self.reference:.3f}",
            "KL (nats)": f"{self.kl:.1e}",
            "largest KL": f"{self.kl_max:.1e}",
            "top-1 agreement": f"{self.top1:.3f}",
            "largest logit error": f"{self.error:.2f}",
            "other choice in spite of a larger lead": str(self.decided),
        }


def measure(config: Config, *, num_tokens: int = NUM_TOKENS) -> Iterator[WeightsRow]:
    """One row each for bfloat16 as it is, for integers in prefill and in decode, and for the difference of these two."""
    exact = _loaded(config, "float32", "native").engine.loaded
    rounded = _loaded(config, "bfloat16", "native").engine.loaded
    coarse = _loaded(config, "bfloat16", config.model.weights)
    check_room(min(num_tokens, WINDOW_TOKENS) + 1, exact.context)
    text = english(num_tokens + 8, coarse.tokenizer.count)
    tokens = list(coarse.tokenizer.encode(text))[: num_tokens + 1]
    mode = coarse.engine.loaded.weights.mode.value
    ways = (
        "native bfloat16, prefill",
        f"{mode}, prefill",
        f"{mode}, decode",
        f"{mode}, decode against prefill",
    )
    tallies = [_Tally() for _ in ways]
    for start in range(0, num_tokens, WINDOW_TOKENS):
        window = tokens[start : start + WINDOW_TOKENS + 1]
        given, following = window[:-1], window[1:]
        truth = _together(exact, given, CHUNK_TOKENS)
        tallies[0].read(truth, _together(rounded, given, CHUNK_TOKENS), following)
        prefilled = _together(coarse.engine.loaded, given, CHUNK_TOKENS)
        decoded = _together(coarse.engine.loaded, as_generated(given), 1)
        tallies[1].read(truth, prefilled, following)
        tallies[2].read(truth, decoded, following)
        tallies[3].read(prefilled, decoded, following)
    yield from (tally.row(how) for how, tally in zip(ways, tallies, strict=True))


def _loaded(config: Config, dtype: str, weights: str) -> ReadyModel:
    model = replace(config.model, dtype=dtype, weights=weights)
    cache = replace(config.cache, mode="off")
    return load(replace(config, model=model, cache=cache), lambda _: None, lambda _: None).model


def _together(model: LoadedModel, tokens: Sequence[int], step: int) -> torch.Tensor:
    """What follows each token, [tokens, vocab], computed `step` tokens at a time."""
    state = model.new_state()
    chunks = [tokens[start : start + step] for start in range(0, len(tokens), step)]
    return torch.cat([model.logits(chunk, state, len(chunk)) for chunk in chunks])


class _Tally:
    """Sums over all tokens read so far."""

    def __init__(self) -> None:
        self._nats = self._true_nats = self._kl = 0.0
        self._kl_max = 0.0
        self._agreed = self._positions = 0
        self._error = 0.0
        self._differing_leads: list[float] = []

    def read(self, truth: torch.Tensor, found: torch.Tensor, following: Sequence[int]) -> None:
        """Compare logits, [tokens, vocab] against the true ones, and both with the tokens that follow."""
        pieces = zip(torch.split(found, CHUNK_TOKENS), torch.split(truth, CHUNK_TOKENS), strict=True)
        for start, (logits, true) in enumerate(pieces):
            targets = torch.tensor(following[start * CHUNK_TOKENS :][: len(logits)])
            logs, true_logs = logits.log_softmax(-1), true.log_softmax(-1)
            divergence = (true_logs.exp() * (true_logs - logs)).sum(-1)
            self._nats -= float(logs.gather(1, targets[:, None]).sum())
            self._true_nats -= float(true_logs.gather(1, targets[:, None]).sum())
            self._kl += float(divergence.sum())
            self._kl_max = max(self._kl_max, float(divergence.max()))
            agrees = logits.argmax(-1) == true.argmax(-1)
            self._agreed += int(agrees.sum())
            self._error = max(self._error, float((logits - true).abs().max()))
            best = true[~agrees].topk(2).values
            self._differing_leads += (best[:, 0] - best[:, 1]).tolist()
            self._positions += len(logits)

    def row(self, how: str) -> WeightsRow:
        """The averages."""
        count = self._positions
        return WeightsRow(
            how=how,
            positions=count,
            perplexity=float(torch.tensor(self._nats / count).exp()),
            reference=float(torch.tensor(self._true_nats / count).exp()),
            kl=self._kl / count,
            kl_max=self._kl_max,
            top1=self._agreed / count,
            error=self._error,
            decided=sum(lead > self._error for lead in self._differing_leads),
        )
