from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kvchat.models.stock import attention
from kvchat.models.stock.attention import arena_attention, arena_mask
from tests.families.shrink import tiny_random_model


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    new, total = query.shape[2], key.shape[2]
    visible = torch.ones(new, total, dtype=torch.bool).tril(total - new)
    scores = (query.double() @ key.double().transpose(2, 3) * scale).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ value.double()).transpose(1, 2)


def module(groups: int) -> SimpleNamespace:
    return SimpleNamespace(num_key_value_groups=groups, is_causal=True)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (8, 1)])
@pytest.mark.parametrize(("new", "total"), [(1, 1), (1, 77), (5, 5), (5, 6), (7, 200), (64, 65), (33, 600)])
def test_new_tokens_over_the_arena_attend_as_they_would_under_a_mask(
    heads: int, kv_heads: int, new: int, total: int
) -> None:
    torch.manual_seed(heads * total + new)
    query = torch.randn(1, heads, new, 16)
    buffers = [torch.full((1, kv_heads, 1024, 16), 1e4) for _ in range(2)]  # what lies behind must not matter
    key, value = (buffer[:, :, :total].normal_() for buffer in buffers)
    out, _ = arena_attention(module(heads // kv_heads), query, key, value, None, scaling=0.3)
    assert (out - reference(query, key, value, 0.3)).abs().max() < 1e-5


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4)])
@pytest.mark.parametrize(("new", "total"), [(1, 1700), (9, 1300), (33, 1600), (200, 1700)])
def test_bfloat16_is_about_as_near_to_the_truth_as_transformers_own_path(
    heads: int, kv_heads: int, new: int, total: int
) -> None:
    torch.manual_seed(total)
    query = torch.randn(1, heads, new, 64, dtype=torch.bfloat16) * 3
    key, value = (torch.randn(1, kv_heads, total, 64, dtype=torch.bfloat16) for _ in range(2))
    truth = reference(query, key, value, 0.125)
    mask = torch.ones(new, total, dtype=torch.bool).tril(total - new)[None, None]
    stock, _ = sdpa_attention_forward(module(heads // kv_heads), query, key, value, mask, scaling=0.125)
    ours, _ = arena_attention(module(heads // kv_heads), query, key, value, None, scaling=0.125)
    error, stock_error = ((out.double() - truth).abs().max() for out in (ours, stock))
    assert error < 2 * stock_error + 2e-3
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_keys_and_values_of_different_widths_take_the_stock_path_with_a_mask() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 5, 16), torch.randn(1, 4, 40, 16), torch.randn(1, 4, 40, 8)
    out, _ = arena_attention(module(1), query, key, value, None, scaling=0.25)
    assert (out - reference(query, key, value, 0.25)).abs().max() < 1e-5


def test_a_mask_is_left_out_only_where_nothing_but_causality_is_meant() -> None:
    sizes = {"batch_size": 1, "q_length": 3, "kv_length": 9, "q_offset": 6, "kv_offset": 0}
    assert arena_mask(**sizes) is None
    assert arena_mask(**sizes, allow_is_causal_skip=False) is not None
    assert arena_mask(**sizes, attention_mask=torch.tensor([[0] * 2 + [1] * 7], dtype=torch.bool)) is not None
    window = arena_mask(**sizes, mask_function=lambda b, h, q, k: (k <= q) & (k > q - 2))
    assert window.sum() == 6


def test_a_model_that_chooses_its_keys_by_itself_keeps_the_attention_that_honours_its_choice() -> None:
    model = tiny_random_model("deepseek_v32")
    attention.enable(model)
    assert model.config._attn_implementation == "sdpa"
