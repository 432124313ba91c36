"""Experts: what transformers' own loop makes of tokens, with the bits that each has in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvchat.models.stock import experts
from kvchat.models.stock.network import describe
from tests.families.shrink import random_tokens, tiny_random_model
from tests.families.sweep import plain_logits

FAMILIES = ["qwen3_moe", "gpt_oss", "nemotron_h", "aria_text", "mixtral", "deepseek_v3"]
"""With gates and without, transposed, woven, with biases."""


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    model = tiny_random_model(
        request.param, **({"first_k_dense_replace": 1} if "deep" in request.param else {})
    )
    experts.enable(model)
    assert model.config._experts_implementation == experts.NAME
    return model


def found(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize("length", [1, 2, 33])
def test_logits_are_those_of_transformers_own_experts(model: torch.nn.Module, length: int) -> None:
    tokens = random_tokens(length)
    assert torch.allclose(found(model, tokens), plain_logits(model)(tokens), atol=1e-4)


def test_a_tokens_bits_are_the_same_in_any_company(model: torch.nn.Module) -> None:
    if model.config.model_type == "nemotron_h":
        pytest.skip("its state-space layers make no promise")
    tokens, others = random_tokens(64), random_tokens(64, seed=1)
    assert torch.equal(found(model, tokens)[:20], found(model, [*tokens[:20], *others[20:]])[:20])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
def test_experts_as_wide_as_real_ones_keep_tokens_apart(dtype: torch.dtype, threads: int) -> None:
    wide = {"hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 4, "num_hidden_layers": 1}
    model = tiny_random_model("qwen3_moe", num_experts_per_tok=2, initializer_range=0.3, **wide).to(dtype)
    module: Any = next(one for name, one in model.named_modules() if name.endswith("experts"))
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(120, 2048, generator=draw).to(dtype)
    weights = torch.rand(120, 2, generator=draw).to(dtype)
    chosen = [torch.rand(120, 4, generator=draw).topk(2).indices for _ in range(8)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for others in chosen[1:]:
                others[:20] = chosen[0][:20]
            first, *rest = (experts.experts_forward(module, states, one, weights)[:20] for one in chosen)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(made, first) for made in rest)


def test_a_family_that_computes_its_experts_itself_promises_no_bits() -> None:
    assert describe(tiny_random_model("qwen3_moe"), name="pluggable").is_exact
    assert not describe(tiny_random_model("dbrx"), name="its own").is_exact
