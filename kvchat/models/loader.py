"""Files -> LoadedModel: the weights on their device, ready for forwards. Knows no conversation and no engine."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from kvchat.config import ModelConfig
from kvchat.errors import KvchatError, ModelUnavailableError, OutOfMemoryError
from kvchat.models import attention
from kvchat.models.adapter import apply_adapter, check_adapter
from kvchat.models.device import (
    check_memory,
    choose_device,
    choose_dtype,
    free_bytes,
    is_out_of_memory,
    memory_need,
)
from kvchat.models.kv_state import Arena, KVState, Recomputed
from kvchat.models.reuse import Continuation, ReusePolicy, ReuseRule, cache_argument, reuse_rule
from kvchat.models.snapshots import Snapshots

DEFAULT_CONTEXT = 4096
"""Context in tokens of a model that does not say its own."""

_UNFOLLOWABLE = frozenset(("cpmant", "reformer", "xlm", "xlnet"))
"""Families whose logits change with what follows, or that take prompts of certain lengths alone."""
_COUNT_FROM_PADDING = frozenset(
    ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod")
)
"""Families whose first position is not 0; they work out their positions themselves."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model on its device. `context` in tokens; `eos_ids` end a turn."""

    name: str
    model: Any
    device: torch.device
    dtype: torch.dtype
    context: int
    rule: ReuseRule
    eos_ids: frozenset[int]
    generation_defaults: dict[str, Any]
    cache_argument: str
    takes_positions: bool
    takes_logits_to_keep: bool
    adapter: Path | None = None

    @property
    def architecture(self) -> str:
        """The family's name in transformers, such as `llama`."""
        return str(self.model.config.model_type)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(item.numel() * item.element_size() for item in self.model.parameters())

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model can score."""
        return int(self.model.config.get_text_config().vocab_size)

    def new_state(self) -> KVState:
        """Empty KV for one conversation."""
        config = self.model.config
        if self.rule.policy is ReusePolicy.NONE:
            return Recomputed(config)
        kind = Arena if self.rule.policy is ReusePolicy.BLOCKS else Snapshots
        return kind(config, capacity=self.context, device=self.device)

    def forward(self, tokens: Sequence[int], state: KVState) -> torch.Tensor:
        """Compute `tokens` behind what `state` holds; returns the last position's logits, [vocab] in float32.

        `state` holds them too afterwards; after an exception it says what it still holds.
        """
        return self.logits(tokens, state, 1)[0]

    def logits(self, tokens: Sequence[int], state: KVState, num_logits: int) -> torch.Tensor:
        """The same, with the logits of the last `num_logits` positions, [num_logits, vocab] in float32."""
        state.reserve(len(state.tokens) + len(tokens))
        arguments = self._arguments(tokens, state)
        if self.takes_logits_to_keep:
            arguments["logits_to_keep"] = num_logits
        try:
            with torch.inference_mode():
                logits: torch.Tensor = self.model(**arguments).logits[0, -num_logits:].float()
        except BaseException:
            state.lose()
            raise
        state.advance(tokens)
        return logits

    def _arguments(self, tokens: Sequence[int], state: KVState) -> dict[str, Any]:
        """What a forward over `tokens` is given; where nothing can be continued, all that `state` holds before them."""
        restarts = self.rule.continuation is Continuation.RESTART
        start = 0 if restarts else len(state.tokens)
        given = [*state.tokens, *tokens] if restarts else list(tokens)
        arguments: dict[str, Any] = {"input_ids": torch.tensor([given], device=self.device)}
        if not restarts:
            arguments |= {self.cache_argument: state.cache, "use_cache": True}
        if self.takes_positions:
            arguments["position_ids"] = torch.arange(start, start + len(given), device=self.device)[None]
        return arguments


def load_model(
    folder: Path,
    settings: ModelConfig,
    *,
    name: str | None = None,
    free_bytes: Callable[[torch.device], int | None] = free_bytes,
) -> LoadedModel:
    """The model of a local folder, run as `settings` say; `name` is what it is called, if not as it is there.

    Weights that don't fit into the device's `free_bytes` are not touched. Raises ModelUnavailableError and
    OutOfMemoryError, each with its remedy.
    """
    _quiet_transformers()
    name = name or settings.name
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    config = _read_config(folder, name, settings.trust_remote_code)
    adapter = Path(settings.adapter).expanduser() if settings.adapter else None
    if adapter:
        check_adapter(adapter)
    need = memory_need(folder, config, dtype)
    check_memory(name, need, free_bytes(device), device=device, context=settings.context)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=settings.trust_remote_code,
        )
        if adapter:
            model = apply_adapter(model, adapter)
        model = model.to(device).eval()
    except KvchatError:
        raise
    except Exception as error:  # a model's own code may raise anything
        if is_out_of_memory(error):
            raise OutOfMemoryError(f"{name} does not fit on {device}", "take a smaller model") from error
        raise ModelUnavailableError(
            f"{name} can't be loaded: {_first_line(error)}", f"check the files in {folder}"
        ) from error
    attention.enable(model)
    return replace(describe(model, name=name, context=settings.context), adapter=adapter)


def describe(model: Any, *, name: str, context: int | None = None) -> LoadedModel:
    """What the engine needs to know about a transformers model. Raises ModelUnavailableError for no text generator."""
    if model.config.model_type in _UNFOLLOWABLE or _reads_ahead(model):
        raise ModelUnavailableError(
            f"{name}: a {model.config.model_type} model does not write from left to right",
            "take a causal language model",
        )
    accepted = inspect.signature(model.forward).parameters
    own_context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT
    defaults = model.generation_config
    return LoadedModel(
        name=name,
        model=model,
        device=model.device,
        dtype=model.dtype,
        context=min(context or own_context, own_context),
        rule=reuse_rule(model),
        eos_ids=frozenset(
            _id_list(defaults.eos_token_id) or _id_list(getattr(model.config, "eos_token_id", None))
        ),
        generation_defaults={k: v for k, v in defaults.to_dict().items() if v is not None},
        cache_argument=cache_argument(model) or "",
        takes_positions="position_ids" in accepted and model.config.model_type not in _COUNT_FROM_PADDING,
        takes_logits_to_keep="logits_to_keep" in accepted,
    )


def _reads_ahead(model: Any) -> bool:
    """Whether a token's logits depend on what follows it; asked of those alone whose config knows of both."""
    if not hasattr(model.config, "is_decoder"):
        return False
    ids = torch.tensor([[3, 4, 5], [3, 4, 6]], device=model.device)
    with torch.inference_mode():
        one, other = model(input_ids=ids).logits[:, 1].float()
    return not torch.allclose(one, other, atol=1e-3)


def _read_config(folder: Path, name: str, trust_remote_code: bool) -> Any:
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers checks configs with errors of many kinds
        if "trust_remote_code" in str(error):
            what, remedy = "needs code of its own", "if you trust its authors, add --trust-remote-code"
        elif "not recognize" in str(error):
            what, remedy = "unknown architecture", "upgrade kvchat, or take another model"
        else:
            what, remedy = "its config.json can't be used", "fetch it again, or take another model"
        raise ModelUnavailableError(f"{name}: {what}: {_first_line(error)}", remedy) from error
    if config.model_type not in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        mapped = getattr(config, "auto_map", None) or {}
        if not (trust_remote_code and "AutoModelForCausalLM" in mapped):
            raise ModelUnavailableError(
                f"{name}: the architecture {config.model_type!r} is no text generator that transformers knows",
                "take a causal language model",
            )
    return config


def _id_list(ids: int | Sequence[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def _quiet_transformers() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"transformers\..*")
