from __future__ import annotations

import pytest
import torch

from kvchat.models.lean import products
from kvchat.models.lean.attention import FEW_ROWS, Attention
from kvchat.models.lean.flash import attend, kernel


def truth(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last tokens in float64, [1, new, heads, dim]."""
    query, key, value = query.double(), key.double(), value.double()
    groups, new, total = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    hidden = ~torch.ones(new, total, dtype=torch.bool).tril(total - new)
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4)])
@pytest.mark.parametrize("new", [1, 2, 8, FEW_ROWS, 50])
@pytest.mark.parametrize("old", [0, 1, 90, 300, 1100, 2100])
def test_new_tokens_attend_to_all_before_them_and_to_none_behind(
    dtype: torch.dtype, heads: int, kv_heads: int, new: int, old: int
) -> None:
    torch.manual_seed(old + new)
    query = (torch.randn(1, heads, new, 32) * 2).to(dtype)
    arena = [torch.full((1, kv_heads, 2200, 32), 1e4, dtype=dtype) for _ in range(2)]
    key, value = (buffer[:, :, : old + new].normal_() for buffer in arena)
    found = attend(query, key, value, scale=None)
    error = (found.double() - truth(query, key, value)).abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 3e-2)
    assert found.shape == (1, new, heads, 32)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_one_token_over_many_keys_is_the_same_on_any_number_of_threads(threads: int) -> None:
    torch.manual_seed(threads)
    query, (key, value) = torch.randn(1, 6, 1, 32), (torch.randn(1, 2, 4203, 32) for _ in range(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert (attend(query, key, value, scale=None).double() - truth(query, key, value)).abs().max() < 1e-5
    finally:
        torch.set_num_threads(before)


def test_heads_that_are_done_one_after_another_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 6, 100, 32, dtype=torch.bfloat16)
    key, value = (torch.randn(1, 3, 700, 32, dtype=torch.bfloat16) for _ in range(2))
    together = attend(query, key, value, scale=None)
    monkeypatch.setattr(products, "MAX_SCORES_BYTES", 1)
    assert torch.equal(attend(query, key, value, scale=None), together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kv_heads", "groups", "dim"), [(2, 3, 32), (3, 3, 64), (1, 8, 128), (4, 1, 64)])
@pytest.mark.parametrize("old", [0, 3, 400, 2040, 3001, 6200])
def test_one_by_one_is_to_the_bit_what_each_token_alone_gives(
    dtype: torch.dtype, kv_heads: int, groups: int, dim: int, old: int
) -> None:
    torch.manual_seed(old)
    query = torch.randn(1, kv_heads * groups, 12, dim, dtype=dtype)
    key, value = (torch.randn(1, kv_heads, old + 12, dim, dtype=dtype) for _ in range(2))
    apart = Attention(kv_heads * groups, kv_heads, dim, 12, old + 12, dtype, is_apart=True)
    found = kernel(apart, old + 12)(query[0].transpose(0, 1), key, value).view(1, 12, -1, dim)
    for at in range(12):
        end = old + at + 1
        alone = attend(query[:, :, at : at + 1], key[:, :, :end], value[:, :, :end], scale=None)
        assert torch.equal(found[:, at : at + 1], alone)
    error = (found.double() - truth(query, key, value)).abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("new", "total"), [(1, 2100), (7, 2100), (70, 700)])
def test_keys_behind_the_last_token_do_not_matter(exact: bool, new: int, total: int) -> None:
    torch.manual_seed(new)
    attention = Attention(6, 2, 64, new, total, torch.bfloat16, exact=exact)
    assert attention.reach > total
    query = torch.randn(new, 6, 64, dtype=torch.bfloat16)
    key, value = (torch.randn(1, 2, attention.reach, 64, dtype=torch.bfloat16) for _ in range(2))
    assert attention.is_flat
    found = kernel(attention, attention.reach)(query, key[0], value[0]).reshape(1, new, 6, 64)
    true = truth(query.transpose(0, 1)[None], key[:, :, :total], value[:, :, :total])
    assert (found.double() - true).abs().max() < 3e-2
    for states in (key, value):
        states[:, :, total:] = 100
    assert torch.equal(
        kernel(attention, attention.reach)(query, key[0], value[0]).reshape(found.shape), found
    )
