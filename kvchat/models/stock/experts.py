"""Our forward over a mixture's experts, plugged into transformers' models on a CPU: a token's bits don't depend on its company.

Which tokens share an expert, and so how many rows its products have, depends on all tokens of a forward. So they are
products whose rows keep their bits beside a multiple of ROWS_MULTIPLE others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from kvchat.models.weights.floats import ROWS_MULTIPLE, alone, linear

NAME = "kvchat"
_OWN_LOOPS = frozenset(("dbrx", "jetmoe", "longcat_flash", "step3p7", "step3p7_text"))
"""Families whose experts nobody else can compute."""


def enable(model: Any) -> None:
    """Use this module's experts in `model` on a CPU, where it lets others compute them."""
    may_set = getattr(model, "_can_set_experts_implementation", lambda: False)
    if model.device.type == "cpu" and may_set():
        model.set_experts_implementation(NAME)


def keeps_apart(model: Any) -> bool:
    """Whether a token's bits are the same whatever other tokens are computed in a forward of as many rows."""
    names = {model.config.model_type, model.config.get_text_config(decoder=True).model_type}
    return not names & _OWN_LOOPS


def experts_forward(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What the chosen experts make of `hidden_states` [tokens, hidden], by the router's `top_k_index` and `top_k_weights`,
    [tokens, chosen] each -> [tokens, hidden]. Each token's sum runs in the order of its choices."""
    num_tokens, num_chosen = top_k_index.shape
    chosen = top_k_index.reshape(-1)
    order = chosen.argsort(stable=True)
    made = hidden_states.new_zeros(len(chosen), hidden_states.shape[-1])
    first = 0
    for expert, count in enumerate(chosen.bincount(minlength=module.num_experts).tolist()):
        places = order[first : first + count]
        first += count
        if count and expert < module.num_experts:  # one more stands for none
            rows = hidden_states[places // num_chosen]
            made[places] = _one_expert(module, rows, expert, is_alone=num_tokens == 1)
    weighted = made * top_k_weights.reshape(-1, 1)
    return weighted.view(num_tokens, num_chosen, -1).sum(1).to(hidden_states.dtype)


def _one_expert(module: Any, rows: torch.Tensor, expert: int, *, is_alone: bool) -> torch.Tensor:
    """`rows` [any, hidden] -> the same shape."""

    def product(name: str, rows: torch.Tensor) -> torch.Tensor:
        weight = getattr(module, name)[expert]
        bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
        return (alone if is_alone else linear)(rows, weight.t() if module.is_transposed else weight, bias)

    count = len(rows)
    rows = rows if is_alone else functional.pad(rows, (0, 0, 0, -count % ROWS_MULTIPLE))
    if module.has_gate:
        inner = _row_by_row(module._apply_gate, product("gate_up_proj", rows))
    else:
        inner = _row_by_row(module.act_fn, product("up_proj", rows))
    out = product("down_proj", inner)[:count]
    return module.post_expert_norm(out) if module.has_post_expert_norm else out


def _row_by_row(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """What an elementwise function makes of each row, as if it came alone: torch shares numbers out among threads, and in
    float32 rounds the last of a share otherwise, which narrower numbers don't show."""
    if rows.dtype != torch.float32:
        return function(rows)
    return torch.cat([function(row) for row in torch.split(rows, 1)])


ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
