"""Where the forwards over a prompt begin and end: each token is to get the bits that it has when all is computed anew.

Generated tokens are computed as if one came after the other, given ones together, in one of two ways (see `LoadedModel`):
where a model's products don't care how many rows they have, forwards may begin and end anywhere; else each is over one
page of the context, or over what of it belongs to one run of given tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from kvchat.models.kinds import is_generated
from kvchat.models.loaded import LoadedModel
from kvchat.models.reuse import Continuation, ReusePolicy


class Schedule:
    """Of the forwards over `tokens`; they also end at each of `points`, where snapshots are taken."""

    def __init__(
        self, tokens: Sequence[int], loaded: LoadedModel, chunk_tokens: int, points: Sequence[int] = ()
    ) -> None:
        self._tokens = tokens
        self._loaded = loaded
        self._chunk_tokens = chunk_tokens
        self._stops = sorted({point for point in points if 0 < point < len(tokens)} | {len(tokens)})

    def start(self, held: int) -> int:
        """From where one goes on whose state holds the first `held` tokens, fewer than there are."""
        page = self._loaded.page
        if page == 1 or is_generated(self._tokens[held]):
            return held
        start = held
        while start % page and not is_generated(self._tokens[start - 1]):
            start -= 1
        return start

    def end(self, start: int, most: int | None = None) -> int:
        """Where the forward ends that begins at token `start`, behind at most `most` given tokens where it may end anywhere."""
        rule, page = self._loaded.rule, self._loaded.page
        stop = self._stops[bisect_right(self._stops, start)]
        if rule.policy is ReusePolicy.NONE:
            return len(self._tokens)
        if rule.continuation is not Continuation.CHUNK:
            return start + 1 if start else self._stops[-2] if len(self._stops) > 1 else len(self._tokens)
        kind = is_generated(self._tokens[start])
        chunk_tokens = min(most or self._chunk_tokens, self._chunk_tokens)
        if kind:
            end = start + self._loaded.network.generated_at_once
        else:
            end = start + chunk_tokens if page == 1 else start // page * page + page
        end = min(end, stop)
        if not self._loaded.is_exact:
            return end
        others = (at for at in range(start, end) if is_generated(self._tokens[at]) is not kind)
        return next(others, end)
