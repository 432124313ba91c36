"""Models that run on transformers' own modules: every family, every device. Knows no files."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kvchat.errors import ModelUnavailableError
from kvchat.models.kinds import ids_of
from kvchat.models.kv_state import KVState
from kvchat.models.loaded import PAGE_TOKENS, LoadedModel, id_list
from kvchat.models.pauses import Pauses
from kvchat.models.reuse import BLOCKS, Continuation, ReusePolicy, ReuseRule, cache_argument, reuse_rule
from kvchat.models.stock import experts
from kvchat.models.stock.arena import Arena, Recomputed
from kvchat.models.stock.long_rope import LongRope, is_stated, original_context
from kvchat.models.stock.snapshots import Snapshots
from kvchat.models.weights.integer_linear import IntegerLinear

DEFAULT_CONTEXT = 4096
"""Context in tokens of a model that does not say its own."""

_UNFOLLOWABLE = frozenset(("cpmant", "reformer", "xlm", "xlnet"))
"""Families whose logits change with what follows, or that take prompts of certain lengths alone."""
_COUNT_FROM_PADDING = frozenset(
    ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod")
)
"""Families whose first position is not 0; they work out their positions themselves."""


@dataclass(frozen=True, slots=True)
class StockNetwork:
    """A transformers model and which arguments its forward takes."""

    model: Any
    cache_argument: str
    takes_positions: bool
    takes_logits_to_keep: bool
    pauses: Pauses = field(default_factory=Pauses)
    num_layers: int = 0

    @property
    def num_parameters(self) -> int:
        """Numbers in the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights, with the integers beside them."""
        plain = sum(item.numel() * item.element_size() for item in self.model.parameters())
        return int(plain + sum(layer.integer_bytes for layer in self._integer_layers()))

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that decoding one token reads: no embedding that is no head too, integers where there are."""
        integers = self._integer_layers()
        unread = {id(layer.weight): layer.weight for layer in integers}
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        if embedding is not None and (head is None or head.weight is not embedding.weight):
            unread[id(embedding.weight)] = embedding.weight
        return self.num_bytes - sum(weight.numel() * weight.element_size() for weight in unread.values())

    def _integer_layers(self) -> list[IntegerLinear]:
        return [module for module in self.model.modules() if isinstance(module, IntegerLinear)]

    def new_state(self, rule: ReuseRule, capacity: int) -> KVState:
        """Empty KV for one conversation of up to `capacity` tokens."""
        config = self.model.config
        if rule.policy is ReusePolicy.NONE:
            return Recomputed(config)
        kind = Arena if rule.policy is ReusePolicy.BLOCKS else Snapshots
        return kind(config, capacity=capacity, device=self.model.device)

    @property
    def generated_at_once(self) -> int:
        """How many generated tokens one forward takes."""
        return 1

    @property
    def together(self) -> None:
        """transformers' modules take one conversation's cache at a time."""

    def logits(
        self, tokens: Sequence[int], state: KVState, num_logits: int, *, rows: int, restarts: bool
    ) -> torch.Tensor:
        """Logits of the last `num_logits` of `tokens` behind `state`, [num_logits, vocab] in float32."""
        num_others = 0
        if rows > len(tokens):
            assert isinstance(state, Arena)
            num_others = min(rows, state.capacity - len(state.tokens)) - len(tokens)
        arguments = self._arguments([*tokens, *[tokens[-1]] * num_others], state, restarts)
        length = arguments["input_ids"].shape[1]
        wanted = slice(length - num_others - num_logits, length - num_others)
        if self.takes_logits_to_keep:
            arguments["logits_to_keep"] = torch.arange(length, device=self.model.device)[wanted]
            wanted = slice(None)
        logits: torch.Tensor = self.model(**arguments).logits[0, wanted].float()
        return logits

    def _arguments(self, tokens: Sequence[int], state: KVState, restarts: bool) -> dict[str, Any]:
        """What a forward over `tokens` is given; where nothing can be continued, all that `state` holds before them."""
        start = 0 if restarts else len(state.tokens)
        given = ids_of([*state.tokens, *tokens] if restarts else tokens)
        device = self.model.device
        arguments: dict[str, Any] = {"input_ids": torch.tensor([given], device=device)}
        if not restarts:
            assert isinstance(state, Arena | Recomputed)
            arguments |= {self.cache_argument: state.cache, "use_cache": True}
        if self.takes_positions:
            arguments["position_ids"] = torch.arange(start, start + len(given), device=device)[None]
        return arguments


def describe(model: Any, *, name: str, context: int | None = None) -> LoadedModel:
    """What the engine needs to know about a transformers model. Raises ModelUnavailableError for no text generator."""
    if model.config.model_type in _UNFOLLOWABLE or _reads_ahead(model):
        raise ModelUnavailableError(
            f"{name}: a {model.config.model_type} model does not write from left to right",
            "take a causal language model",
        )
    accepted = inspect.signature(model.forward).parameters
    own_context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT
    long_rope = LongRope.of(model)
    if long_rope is None and is_stated(model.config):
        own_context = original_context(model.config)  # code of its own can't be told which keys to compute
    rule = reuse_rule(model)
    if rule.continuation is Continuation.RESTART:
        model.config.use_cache = False  # nobody would use it again
    is_exact = (
        rule == BLOCKS and model.device.type == "cpu" and long_rope is None and experts.keeps_apart(model)
    )
    defaults, pauses = model.generation_config, Pauses()
    num_layers = _pause_between_layers(model, pauses)
    return LoadedModel(
        name=name,
        architecture=str(model.config.model_type),
        network=StockNetwork(
            model,
            cache_argument=cache_argument(model) or "",
            takes_positions="position_ids" in accepted and model.config.model_type not in _COUNT_FROM_PADDING,
            takes_logits_to_keep="logits_to_keep" in accepted,
            pauses=pauses,
            num_layers=num_layers,
        ),
        device=model.device,
        dtype=model.dtype,
        context=min(context or own_context, own_context),
        vocab_size=int(model.config.get_text_config().vocab_size),
        rule=rule,
        eos_ids=frozenset(
            id_list(defaults.eos_token_id) or id_list(getattr(model.config, "eos_token_id", None))
        ),
        generation_defaults={k: v for k, v in defaults.to_dict().items() if v is not None},
        long_rope=long_rope,
        is_exact=is_exact,
        page=PAGE_TOKENS if is_exact else 1,
    )


def _pause_between_layers(model: Any, pauses: Pauses) -> int:
    """Let each decoder layer begin with a pause; how many there are, 0 where a model's modules don't show its layers."""
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0)
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    layers = next((found for found in lists if len(found) == count), ())
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: pauses.pause())
    return len(layers)


def _reads_ahead(model: Any) -> bool:
    """Whether a token's logits depend on what follows it; asked of those alone whose config knows of both."""
    if not hasattr(model.config, "is_decoder"):
        return False
    ids = torch.tensor([[3, 4, 5], [3, 4, 6]], device=model.device)
    with torch.inference_mode():
        one, other = model(input_ids=ids).logits[:, 1].float()
    return not torch.allclose(one, other, atol=1e-3)
