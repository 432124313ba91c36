"""A loaded model as the engine sees it: token ids and a state in, logits out. Knows no files and no transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from kvchat.models.company import Part, Together
from kvchat.models.kinds import LONG, ids_of, is_generated, is_long
from kvchat.models.kv_state import KVState
from kvchat.models.pauses import Pauses
from kvchat.models.reuse import Continuation, ReuseRule
from kvchat.models.weights.floats import ROWS_MULTIPLE
from kvchat.models.weights.mode import NATIVE, Weights

if TYPE_CHECKING:
    from kvchat.models.stock.long_rope import LongRope

_RENEWED_TOKENS = 256
"""Tokens of one forward where what was held has to be computed again."""
PAGE_TOKENS = 64
"""Given tokens of one forward where a product's bits depend on how many rows it has."""


class Network(Protocol):
    """The forward pass: transformers' own modules, or our lean ones for llama-like models on a CPU."""

    @property
    def num_parameters(self) -> int:
        """Numbers in the model."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights that are held."""

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that decoding one token reads."""

    @property
    def generated_at_once(self) -> int:
        """How many generated tokens one forward may take, so that each is computed as if it came alone."""

    @property
    def pauses(self) -> Pauses:
        """Its forwards' moments between two layers."""

    @property
    def num_layers(self) -> int:
        """How many of these moments a forward has; 0 where it has none."""

    @property
    def together(self) -> Together | None:
        """Computes generated tokens of several conversations, `generated_at_once` of them in all; None where it can't."""

    def new_state(self, rule: ReuseRule, capacity: int) -> KVState:
        """Empty KV for one conversation of up to `capacity` tokens, kept as `rule` allows."""

    def logits(
        self, tokens: Sequence[int], state: KVState, num_logits: int, *, rows: int, restarts: bool
    ) -> torch.Tensor:
        """Logits of the last `num_logits` of `tokens`, which are of one kind, behind `state`, [num_logits, vocab] in
        float32.

        They are computed beside others, whatever these are, as `rows` in all if there is room. With `restarts` all
        that `state` holds is computed again before them.
        """


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model on its device. `context` in tokens; `eos_ids` end a turn.

    Where it `is_exact` a token's arithmetic depends on its place and its kind alone, to the bit: generated tokens are
    computed as if one came after the other, and given ones in pages of `page` tokens of the context, or with 1 any number
    of them together.
    """

    name: str
    architecture: str
    network: Network
    device: torch.device
    dtype: torch.dtype
    context: int
    vocab_size: int
    rule: ReuseRule
    eos_ids: frozenset[int]
    generation_defaults: dict[str, Any] = field(default_factory=dict)
    weights: Weights = NATIVE
    adapter: Path | None = None
    long_rope: LongRope | None = None
    is_exact: bool = False
    page: int = 1

    @property
    def model(self) -> Any:
        """transformers' model, where it is one."""
        return self.network.model  # type: ignore[attr-defined]

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return self.network.num_bytes

    def new_state(self) -> KVState:
        """Empty KV for one conversation."""
        return self.network.new_state(self.rule, self.context)

    def told(self, tokens: Sequence[int], num_tokens: int | None = None) -> list[int]:
        """Tokens as states and the cache know them, where they begin a conversation of `num_tokens` (of them alone by
        default): of their kinds where these make a difference, and the first of them marked where LongRoPE makes all
        keys others than those of a shorter one."""
        known = list(tokens) if self.is_exact else ids_of(tokens)
        if known and self.long_rope and self.long_rope.is_long(num_tokens or len(known)):
            known[0] |= LONG
        return known

    def num_at_once(self, state: KVState) -> int:
        """How many generated tokens one forward may add to what `state` holds, each computed as if it came alone."""
        most = self.network.generated_at_once if self.is_exact else self.context
        if self.long_rope is None or (state.tokens and is_long(state.tokens[0])):
            return most
        return min(most, self.long_rope.threshold - len(state.tokens))

    def may_lose(self, state: KVState) -> bool:
        """Whether a forward that fails may take along what `state` held before it."""
        return self.long_rope is not None or not state.is_divisible

    def forward(self, tokens: Sequence[int], state: KVState) -> torch.Tensor:
        """Compute `tokens`, of one kind, behind what `state` holds; returns the last position's logits, [vocab] in
        float32.

        `state` holds them too afterwards; after an exception it says what it still holds.
        """
        return self.logits(tokens, state, 1)[0]

    def logits(self, tokens: Sequence[int], state: KVState, num_logits: int) -> torch.Tensor:
        """The same, with the logits of the last `num_logits` positions, [num_logits, vocab] in float32."""
        if self.long_rope:
            tokens = self._choose_keys(state, tokens)
        state.reserve(len(state.tokens) + len(tokens))
        restarts = self.rule.continuation is Continuation.RESTART
        try:
            with torch.inference_mode():
                rows = self._rows(tokens, len(state.tokens))
                logits = self.network.logits(tokens, state, num_logits, rows=rows, restarts=restarts)
        except BaseException:
            state.lose()
            raise
        state.advance(tokens)
        return logits

    @property
    def num_together(self) -> int:
        """How many generated tokens of several conversations one forward takes, each with the bits that it has alone; 0
        where conversations are computed one after the other."""
        can = self.is_exact and self.long_rope is None and self.network.together is not None
        return self.network.generated_at_once if can else 0

    def logits_together(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        """The logits of all tokens of parts of different states, for each [tokens, vocab] in float32; no more tokens in
        all than `num_together`. States hold them afterwards; after an exception each says what it still holds."""
        assert self.network.together is not None
        for part in parts:
            part.state.reserve(len(part.state.tokens) + len(part.tokens))
        try:
            with torch.inference_mode():
                logits = self.network.together(parts)
        except BaseException:
            for part in parts:
                part.state.lose()
            raise
        for part in parts:
            part.state.advance(part.tokens)
        return logits

    def _rows(self, tokens: Sequence[int], start: int) -> int:
        """With how many rows `tokens` are computed that begin at token `start`: given ones with a number that leaves the
        bits of each as they are."""
        if not self.is_exact or is_generated(tokens[0]):
            return len(tokens)
        if self.page == 1:
            return -(-len(tokens) // ROWS_MULTIPLE) * ROWS_MULTIPLE
        return max(len(tokens), (start // self.page + 1) * self.page - start)

    def _choose_keys(self, state: KVState, tokens: Sequence[int]) -> Sequence[int]:
        """LongRoPE: compute the keys of the regime that the first token tells; when `tokens` take a short conversation
        over the threshold, all before them are computed again. Returns `tokens` as the state is to know them."""
        assert self.long_rope is not None
        num_tokens = len(state.tokens) + len(tokens)
        if not state.tokens:
            tokens = tokens if is_long(tokens[0]) else self.told(tokens)
        elif not is_long(state.tokens[0]) and self.long_rope.is_long(num_tokens):
            held = self.told(state.tokens, num_tokens)
            state.keep(0)
            for start in range(0, len(held), _RENEWED_TOKENS):
                self.forward(held[start : start + _RENEWED_TOKENS], state)
        self.long_rope.use(is_long((state.tokens or tokens)[0]))
        return tokens


def id_list(ids: int | Sequence[int] | None) -> list[int]:
    """Token ids as a config states them: none, one or several."""
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
