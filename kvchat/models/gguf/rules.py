"""What becomes of a GGUF's tensors on their way to transformers' names and orders: llama.cpp's converter, undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Config = Mapping[str, Any]
Make = Callable[[list[torch.Tensor], Config], torch.Tensor]
"""Makes one of transformers' tensors of the file's, which come in the order of their rules."""


def same(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """The one tensor as it is."""
    (part,) = parts
    return part


@dataclass(frozen=True, slots=True)
class Rule:
    """Where a tensor goes: transformers' name (of the module, or whole), its place among those that go there too."""

    name: str
    make: Make = same
    place: int = 0


def paired_rows(heads: str) -> Make:
    """llama.cpp lays the rows of rotated pairs side by side, transformers in two halves; `heads` is config's key."""

    def make(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
        (part,) = parts
        rows = part.view(config[heads], -1, 2, *part.shape[1:])
        return rows.transpose(1, 2).reshape(part.shape)

    return make


def minus_one(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """Norms that transformers adds 1 to."""
    (part,) = parts
    return part - 1


def transposed(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """GPT-2's matrices, which transformers stores the other way round."""
    (part,) = parts
    return part.t().contiguous() if part.ndim == 2 else part


def one_row(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """A vector that llama.cpp gives a second dimension of 1."""
    (part,) = parts
    return part.reshape(-1)


def convolution(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """[channels, width] -> [channels, 1, width]."""
    (part,) = parts
    return part.unsqueeze(1)


def logarithm(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """A state's decay, which llama.cpp stores as -exp of what transformers has."""
    (part,) = parts
    decay = torch.log(-part.float())
    return decay.reshape(-1) if decay.shape[-1] == 1 else decay


def experts(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """Gate and up of all experts, [experts, rows, hidden] each, one above the other."""
    return torch.cat(parts, dim=1)


def stacked(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """Matrices one above the other."""
    return torch.cat(parts)


def woven_experts(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """Gate and up of gpt-oss's experts, column by column in turn, transposed."""
    woven = torch.stack(parts, dim=2)  # [experts, rows, 2, hidden], or [experts, rows, 2] of biases
    joined = woven.reshape(woven.shape[0], -1, *woven.shape[3:])
    return joined.transpose(1, 2).contiguous() if joined.ndim == 3 else joined


def turned_experts(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """[experts, rows, columns] -> [experts, columns, rows]."""
    (part,) = parts
    return part.transpose(1, 2).contiguous() if part.ndim == 3 else part


def latent_keys_and_values(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """DeepSeek's: what makes keys (transposed) and values of the latent state, head by head, in one matrix."""
    keys, values = parts  # [heads, latent, key], [heads, value, latent]
    return torch.cat([keys.transpose(1, 2), values], dim=1).flatten(0, 1)


def bloom_heads(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """Q, K and V of all heads in turn -> of each head in turn."""
    (part,) = parts
    by_kind = part.view(3, config["n_head"], -1, *part.shape[1:])
    return by_kind.transpose(0, 1).reshape(part.shape)


def falcon_heads(parts: list[torch.Tensor], config: Config) -> torch.Tensor:
    """Q of all heads, then K, then V -> of each group its queries, its key, its value."""
    (part,) = parts
    groups, heads = config["num_kv_heads"], config["num_attention_heads"]
    size = part.shape[0] // (heads + 2 * groups)
    queries, keys, values = torch.split(part, [heads * size, groups * size, groups * size])
    by_group = [item.reshape(groups, -1, size, *part.shape[1:]) for item in (queries, keys, values)]
    return torch.cat(by_group, dim=1).reshape(part.shape)
