"""Whether what is stored on disk is the KV of its tokens: loaded, and computed again, and compared. Changes nothing stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kvchat.backends.inspection import VerifiedRun, VerifySample
from kvchat.cache.entry import EntryError
from kvchat.cache.folder import scan_folder
from kvchat.cache.maintenance import read_tokens
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.engine import CHUNK_TOKENS, Engine
from kvchat.models.kv_state import KVState
from kvchat.models.loaded import LoadedModel
from kvchat.models.schedule import Schedule

FLOAT32_BOUND = 1e-4
"""How far float32 logits may lie apart where it is not promised that they are the same to the bit."""
LOSSY_SHARE = 0.05
"""What a lossy encoding may change, of the distance between the best and the average logit."""
MAX_TOKENS = 4096
"""Longer runs are left out: computing them takes too long."""


def verify_sample(engine: Engine, root: Path, sample: int, is_cancelled: Callable[[], bool]) -> VerifySample:
    """Compare up to `sample` runs that lie in the cache folder `root` for this model, those used last.

    Each takes a prefill of its tokens. Where the model is exact and the cache keeps bits, they have to be the same; else
    another prefill tells what is rounding.
    """
    loaded, cache = engine.loaded, engine.cache
    dtype = str(loaded.dtype).removeprefix("torch.")
    if cache is None:
        return VerifySample(loaded.name, dtype, "raw", None, ())
    bound = _bound(loaded, cache)
    runs: list[VerifiedRun] = []
    num_skipped = 0
    for path, tokens in _newest(root / cache.root.hex()):
        if len(runs) == sample or is_cancelled():
            break
        run = _verified(engine, path, tokens)
        if run is None:
            num_skipped += 1
        else:
            runs.append(run)
    return VerifySample(loaded.name, dtype, cache.settings.codec, bound, _judged(runs, bound), num_skipped)


def _bound(loaded: LoadedModel, cache: PrefixCache) -> float | None:
    """How far logits may lie apart at most; None where rounding says."""
    if not cache.settings.is_exact:
        return None
    return 0.0 if loaded.is_exact else FLOAT32_BOUND if loaded.dtype == torch.float32 else None


def _verified(engine: Engine, path: Path, tokens: list[int]) -> VerifiedRun | None:
    """One run compared; None when it is too long or can't be restored whole."""
    loaded, cache, state = engine.loaded, engine.cache, engine.loaded.new_state()
    assert cache is not None
    if not 1 < len(tokens) <= min(loaded.context, MAX_TOKENS):
        return None
    if not _restore(loaded, cache, state, tokens):
        return None
    stored = _logits(loaded, state, tokens, CHUNK_TOKENS)
    state.keep(0)
    cold = other = _logits(loaded, state, tokens, CHUNK_TOKENS)
    if _bound(loaded, cache) is None:
        state.keep(0)
        other = _logits(loaded, state, tokens, CHUNK_TOKENS // 2 + 1)
    best, second = cold.topk(2).values.tolist()
    loss = LOSSY_SHARE * float(best - cold.mean()) if not cache.settings.is_exact else 0.0
    return VerifiedRun(
        path=str(path),
        tokens=len(tokens),
        difference=float((stored - cold).abs().max()),
        gap=best - second,
        noise=max(loss, float((cold - other).abs().max())),
        same_top=bool(stored.argmax() == cold.argmax()),
        is_right=True,
    )


def _newest(folder: Path) -> Iterator[tuple[Path, list[int]]]:
    """The readable files of a fingerprint with all their tokens, the most recently used first.

    Where there are snapshots, only these can be taken up; each is followed by its last token once more, to see what
    the model says behind it.
    """
    files = [file for file in scan_folder(folder.parent).files if file.folder == folder]
    has_snapshots = any(file.name.is_state for file in files)
    for file in sorted(files, key=lambda file: file.mtime_ns, reverse=True):
        if file.name.is_state != has_snapshots:
            continue
        try:
            tokens = list(read_tokens(file.path))
        except (OSError, EntryError):
            continue
        yield file.path, [*tokens, tokens[-1]] if has_snapshots else tokens


def _restore(loaded: LoadedModel, cache: PrefixCache, state: KVState, tokens: Sequence[int]) -> bool:
    """Bring all tokens but the last into an empty state from what is stored; False when not all of them are."""
    loaded.forward([0], state)  # the planes are there after the first forward
    state.keep(0)
    num_tokens = len(tokens) - 1
    state.reserve(num_tokens)
    match = cache.match(tokens[:num_tokens] if state.states else tokens)
    if match.num_tokens < num_tokens:
        return False
    with cache.lease(match) as lease, torch.inference_mode():
        end = cache.load(lease, state.planes, 0, num_tokens, states=state.states).end
    state.advance(tokens[:end])
    return end == num_tokens


def _logits(loaded: LoadedModel, state: KVState, tokens: Sequence[int], chunk_tokens: int) -> torch.Tensor:
    """The logits behind the last token, from where the state can be gone on with."""
    points = [] if loaded.is_exact else [len(tokens) - 1]
    schedule = Schedule(tokens, loaded, chunk_tokens, points)
    state.keep(schedule.start(min(len(state.tokens), len(tokens) - 1)))
    while (start := len(state.tokens)) < len(tokens):
        logits = loaded.forward(tokens[start : schedule.end(start)], state)
    return logits


def _judged(runs: Sequence[VerifiedRun], bound: float | None) -> tuple[VerifiedRun, ...]:
    """The runs, each right or wrong; by the largest noise that was seen in any, for one sample of it is small."""
    noise = max((run.noise for run in runs), default=0.0)
    return tuple(replace(run, noise=noise, is_right=_is_right(run, noise, bound)) for run in runs)


def _is_right(run: VerifiedRun, noise: float, bound: float | None) -> bool:
    if bound is not None:
        return run.difference <= bound
    return run.same_top or run.gap <= 2 * noise
