"""A loaded model as the engine sees it: token ids and a state in, logits out. Knows no files and no transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from kvchat.models.kinds import is_generated
from kvchat.models.kv_state import KVState
from kvchat.models.lean.flash import ROWS_MULTIPLE
from kvchat.models.reuse import Continuation, ReuseRule
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

    def prepare(self, state: KVState, num_tokens: int) -> None:
        """Before a prompt of `num_tokens`: where LongRoPE makes all its keys others than those held, hold none."""
        if self.long_rope and state.is_long != self.long_rope.is_long(num_tokens):
            state.keep(0)
            state.is_long = not state.is_long

    def num_alike(self, state: KVState) -> int:
        """How many tokens one forward may add at most without making the keys others than those held."""
        if self.long_rope is None or state.is_long:
            return self.context
        return self.long_rope.threshold - len(state.tokens)

    def forward(self, tokens: Sequence[int], state: KVState) -> torch.Tensor:
        """Compute `tokens`, of one kind, behind what `state` holds; returns the last position's logits, [vocab] in
        float32.

        `state` holds them too afterwards; after an exception it says what it still holds.
        """
        return self.logits(tokens, state, 1)[0]

    def logits(self, tokens: Sequence[int], state: KVState, num_logits: int) -> torch.Tensor:
        """The same, with the logits of the last `num_logits` positions, [num_logits, vocab] in float32."""
        if self.long_rope:
            self._choose_keys(state, len(tokens))
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

    def _rows(self, tokens: Sequence[int], start: int) -> int:
        """With how many rows `tokens` are computed that begin at token `start`: given ones with a number that leaves the
        bits of each as they are."""
        if not self.is_exact or is_generated(tokens[0]):
            return len(tokens)
        if self.page == 1:
            return -(-len(tokens) // ROWS_MULTIPLE) * ROWS_MULTIPLE
        return max(len(tokens), (start // self.page + 1) * self.page - start)

    def _choose_keys(self, state: KVState, num_new: int) -> None:
        """LongRoPE: when `num_new` tokens take a conversation over the threshold, all before them are computed again."""
        assert self.long_rope is not None
        if not state.is_long and self.long_rope.is_long(len(state.tokens) + num_new):
            held = list(state.tokens)
            self.prepare(state, len(held) + num_new)
            for start in range(0, len(held), _RENEWED_TOKENS):
                self.forward(held[start : start + _RENEWED_TOKENS], state)
        self.long_rope.use(state.is_long)


def id_list(ids: int | Sequence[int] | None) -> list[int]:
    """Token ids as a config states them: none, one or several."""
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
