"""What is held of a prompt: the live state first, then what the cache has; and giving it to the cache. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from kvchat.cache.base import Ended, Match
from kvchat.cache.block import common_prefix
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.pace import Pace
from kvchat.engine.request import Reuse
from kvchat.models.kv_state import KVState
from kvchat.models.reuse import Continuation, ReusePolicy, ReuseRule
from kvchat.models.schedule import Schedule

PENDING_BYTES = 128 * 2**20
"""Snapshots that were taken go to the cache at once when they take more than this."""
EXCESS_TOKENS = 1024
"""In a prefill, what layers with a window hold for nothing is given back when it is this much."""


class Holding:
    """The cache behind an engine's live states, and what of it is worth using."""

    def __init__(self, rule: ReuseRule, pace: Pace) -> None:
        self.rule = rule
        self.pace = pace
        self.cache: PrefixCache | None = None

    def take_up(self, state: KVState, prompt: Sequence[int], schedule: Schedule) -> Reuse:
        """Bring into the state what is known of the prompt but its last token: from itself, then from the cache; as far
        as the forwards of `schedule` go on from there."""
        shared = min(common_prefix(state.tokens, prompt), len(prompt) - 1)
        live = state.keep(schedule.start(shared))
        match = self.cache.match(prompt[:-1]) if self.cache else None
        ended = match.ended if match else Ended.OFF
        stored = schedule.start(match.num_tokens) if match else 0
        best = max(live, stored)
        reuse = Reuse(live, ended=ended, policy=self.rule.policy)
        if self._is_slower_than_all(best, len(prompt)):
            return replace(reuse, live=state.keep(0), skipped=best, is_renewed=True)
        if match is None or best == live:
            return reuse
        if not self._is_worth_loading(match, stored, live):
            return replace(reuse, skipped=best - live)
        reuse = self._load(state, prompt[:stored], match, reuse, shared)
        usable = schedule.start(len(state.tokens))  # less than hoped for where something was damaged
        return reuse if state.keep(usable) >= reuse.num_tokens else replace(reuse, live=usable, tiers={})

    def store(
        self, state: KVState, num_tokens: int | None = None, *, priority: int = 0, is_kept: bool = True
    ) -> None:
        """Give what is held of the first `num_tokens` (all of them by default) to the cache, if it `is_kept` at all.

        After that the memory is given back of what layers with a window no longer look at.
        """
        if self.rule.policy is ReusePolicy.SNAPSHOTS and num_tokens is None:
            state.take()
        if self.cache is not None and state.tokens and is_kept:
            self._commit(self.cache, state, num_tokens, priority)
        if num_tokens is None or num_tokens >= len(state.tokens):
            state.release()

    def _commit(self, cache: PrefixCache, state: KVState, num_tokens: int | None, priority: int) -> None:
        length = len(state.tokens) if num_tokens is None else min(num_tokens, len(state.tokens))
        first = state.first_held
        with torch.inference_mode():
            cache.commit(state.tokens, state.planes, length, priority=priority, first=first)
            for at, states in list(state.taken.items()):
                tokens = state.tokens[:at]
                if (
                    at <= length
                    and cache.commit(
                        tokens, state.planes, at, states=states, priority=priority, first=first
                    ).is_whole
                ):
                    state.drop(at)

    def is_due(self, state: KVState) -> bool:
        """Whether so much waits to be stored, or is held for nothing until it is, that it should be done now."""
        pending_bytes = sum(one.nbytes for states in state.taken.values() for one in states)
        return state.excess >= EXCESS_TOKENS or pending_bytes > PENDING_BYTES

    def _is_slower_than_all(self, held: int, length: int) -> bool:
        """Whether going on from `held` tokens one by one takes longer than computing the whole prompt in one go."""
        if self.rule.continuation is not Continuation.ONE_TOKEN or not held:
            return False
        return (length - held) * self.pace.step_s > length * self.pace.prefill_s_per_token + self.pace.step_s

    def _is_worth_loading(self, match: Match, stored: int, live: int) -> bool:
        token_s = self.pace.prefill_s_per_token
        if live and self.rule.continuation is Continuation.ONE_TOKEN:
            token_s = self.pace.step_s
        computing_s = (stored - live) * token_s
        return not token_s or match.load_s(live) < computing_s

    def _load(self, state: KVState, tokens: Sequence[int], match: Match, reuse: Reuse, shared: int) -> Reuse:
        """Load what the match has of `tokens` behind what is live; the KV of the first `shared` is there, whatever else
        has to be loaded."""
        assert self.cache is not None
        live, wanted = reuse.live, len(tokens)
        state.reserve(wanted)
        with self.cache.lease(match) as lease, torch.inference_mode():
            planes, states = state.planes, state.states
            start = state.missing(shared, wanted)
            try:
                loaded = self.cache.load(lease, planes, start, wanted, states=states)
            except BaseException:
                state.lose()
                raise
        _bring_in(state, tokens[live : loaded.end], start if loaded.end else state.first_held)
        end = len(state.tokens)
        ended = match.ended if end >= wanted else Ended.CORRUPT
        tiers = loaded.tokens if end > live else {}
        if lease.state:
            tiers = {lease.state.tier: end - live}
        live = end - sum(tiers.values())  # more than before where only a window had to be loaded
        return replace(reuse, live=live, tiers=tiers, kv_load_s=loaded.seconds, ended=ended)


def _bring_in(state: KVState, tokens: Sequence[int], start: int) -> None:
    """Count `tokens` as held, whose KV was loaded from token `start` on; none where a window was not loaded whole."""
    state.advance(tokens, first_held=min(state.first_held, start))
    state.keep(len(state.tokens))
