"""What the encodings at rest save, and what int8 costs in quality: its next-token distributions against exact KV's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kvchat.backends.loading import ReadyModel, load
from kvchat.bench.measure import english
from kvchat.cache.base import CacheSettings
from kvchat.cache.block import KVLayout
from kvchat.cache.codec import allocate, make_codec
from kvchat.cache.packing import block_packing
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.config import Config
from kvchat.models.kinds import as_generated

PREFIX_TOKENS = 1024
NUM_POSITIONS = 128
NUM_TEXTS = 3


@dataclass(frozen=True, slots=True)
class CodecRow:
    """One text: `kl` in nats and `top1` agreement over `positions` tokens behind `prefix` restored ones."""

    prefix: int
    positions: int
    kl: float
    kl_max: float
    top1: float
    bytes_raw: int
    bytes_int8: int
    bytes_packed: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {"bench": "codec", **asdict(self)}

    def cells(self) -> dict[str, str]:
        """What a table shows."""
        return {
            "prefix": str(self.prefix),
            "positions": str(self.positions),
            "KL (nats)": f"{self.kl:.2e}",
            "largest KL": f"{self.kl_max:.2e}",
            "top-1 agreement": f"{self.top1:.3f}",
            "int8 / raw bytes": f"{self.bytes_int8 / self.bytes_raw:.2f}",
            "packed / raw bytes": f"{self.bytes_packed / self.bytes_raw:.2f}",
        }


def measure(config: Config, *, texts: int = NUM_TEXTS) -> Iterator[CodecRow]:
    """A row a text: the prefix is restored from either encoding, the text behind it read token by token."""
    loaded = load(config, lambda _: None, lambda _: None).model
    for number in range(texts):
        text = english(PREFIX_TOKENS + NUM_POSITIONS + 8, loaded.tokenizer.count, skip=number * 7)
        tokens = list(loaded.tokenizer.encode(text))[: PREFIX_TOKENS + NUM_POSITIONS]
        yield _row(loaded, tokens)


def _row(loaded: ReadyModel, tokens: list[int]) -> CodecRow:
    model = loaded.engine.loaded
    state = model.new_state()
    for start in range(0, PREFIX_TOKENS, 256):
        model.forward(tokens[start : start + 256], state)
    layout = loaded.engine.kv_layout
    assert layout is not None, "this model's KV can't be cut into blocks"
    logs: dict[str, torch.Tensor] = {}
    sizes: dict[str, int] = {}
    for codec in ("raw", "int8"):
        cache = PrefixCache(layout, b"bench", CacheSettings(ram_bytes=2**31, codec=codec))
        with torch.inference_mode():
            cache.commit(tokens, state.planes, PREFIX_TOKENS)
        sizes[codec] = cache.usage()[0].used_bytes
        logs[codec] = _log_probabilities(loaded, cache, tokens)
    divergence = (logs["raw"].exp() * (logs["raw"] - logs["int8"])).sum(-1)
    agree = (logs["raw"].argmax(-1) == logs["int8"].argmax(-1)).float().mean()
    return CodecRow(
        PREFIX_TOKENS,
        NUM_POSITIONS,
        float(divergence.mean()),
        float(divergence.max()),
        float(agree),
        sizes["raw"],
        sizes["int8"],
        _packed_bytes(layout, state.planes),
    )


def _packed_bytes(layout: KVLayout, planes: Sequence[torch.Tensor]) -> int:
    """What the prefix takes packed, headers left out."""
    block_size = CacheSettings().block_size
    raw = make_codec("raw", layout, block_size)
    run = allocate(PREFIX_TOKENS // block_size * raw.block_bytes)
    raw.encode(planes, 0, run)
    packing = block_packing(layout, raw.block_bytes)
    return sum(len(packing.pack(block.data)) for block in run.numpy().reshape(-1, raw.block_bytes))


def _log_probabilities(loaded: ReadyModel, cache: PrefixCache, tokens: list[int]) -> torch.Tensor:
    """[positions, vocab]: what follows each token behind the restored prefix."""
    model = loaded.engine.loaded
    state = model.new_state()
    model.forward(tokens[:1], state)  # lets the arena allocate its buffers
    with cache.lease(cache.match(tokens[:PREFIX_TOKENS])) as lease, torch.inference_mode():
        restored = cache.load(lease, state.planes, 0, PREFIX_TOKENS)
    assert restored.end == PREFIX_TOKENS
    state.advance(tokens[1:PREFIX_TOKENS])
    decoded = as_generated(tokens[PREFIX_TOKENS:])
    return torch.stack([model.forward([token], state).log_softmax(-1) for token in decoded])
