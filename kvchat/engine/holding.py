"""What is held of a prompt: the live state first, then what the cache has; and giving it to the cache. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from kvchat.cache.base import Ended, Match
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.pace import Pace
from kvchat.engine.request import Reuse
from kvchat.models.kv_state import KVState, common_prefix
from kvchat.models.reuse import Continuation, ReusePolicy, ReuseRule
from kvchat.models.schedule import Schedule

PENDING_BYTES = 128 * 2**20
"""Snapshots that were taken go to the cache at once when they take more than this."""


EXCESS_TOKENS = 1024
"""In a prefill, what layers with a window hold for nothing is given back when it is this much."""


class Holding:
    """The live state of one conversation with the cache behind it."""

    def __init__(self, state: KVState, rule: ReuseRule, pace: Pace) -> None:
        self.state = state
        self.rule = rule
        self.pace = pace
        self.caches: list[PrefixCache | None] = [
            None,
            None,
        ]  # of short conversations and, with LongRoPE, of long ones

    @property
    def cache(self) -> PrefixCache | None:
        """The cache behind the state as it is now."""
        return self.caches[self.state.is_long]

    def take_up(self, prompt: Sequence[int], schedule: Schedule) -> Reuse:
        """Bring into the state what is known of the prompt but its last token: from itself, then from the cache; as far
        as the forwards of `schedule` go on from there."""
        self._rest()
        shared = min(common_prefix(self.state.tokens, prompt), len(prompt) - 1)
        live = self.state.keep(schedule.start(shared))
        match = self.cache.match(prompt[:-1]) if self.cache else None
        ended = match.ended if match else Ended.OFF
        stored = schedule.start(match.num_tokens) if match else 0
        best = max(live, stored)
        reuse = Reuse(live, ended=ended, policy=self.rule.policy)
        if self._is_slower_than_all(best, len(prompt)):
            return replace(reuse, live=self.state.keep(0), skipped=best, is_renewed=True)
        if match is None or best == live:
            return reuse
        if not self._is_worth_loading(match, stored, live):
            return replace(reuse, skipped=best - live)
        reuse = self._load(prompt[:stored], match, reuse, shared)
        usable = schedule.start(len(self.state.tokens))  # less than hoped for where something was damaged
        return reuse if self.state.keep(usable) >= reuse.num_tokens else replace(reuse, live=usable, tiers={})

    def store(self, num_tokens: int | None = None, *, priority: int = 0) -> None:
        """Give what is held of the first `num_tokens` (all of them by default) to the cache.

        After that the memory is given back of what layers with a window no longer look at.
        """
        self._rest()
        self._commit(num_tokens, priority)
        if num_tokens is None or num_tokens >= len(self.state.tokens):
            self.state.release()

    def _commit(self, num_tokens: int | None, priority: int) -> None:
        state = self.state
        if self.rule.policy is ReusePolicy.SNAPSHOTS and num_tokens is None:
            state.take()
        if self.cache is None or not state.tokens:
            return
        length = len(state.tokens) if num_tokens is None else min(num_tokens, len(state.tokens))
        with torch.inference_mode():
            first = state.first_held
            self.cache.commit(state.tokens, state.planes, length, priority=priority, first=first)
            for at, states in list(state.taken.items()):
                tokens = state.tokens[:at]
                if (
                    at <= length
                    and self.cache.commit(
                        tokens, state.planes, at, states=states, priority=priority, first=first
                    ).is_whole
                ):
                    state.drop(at)

    @property
    def is_due(self) -> bool:
        """Whether so much waits to be stored, or is held for nothing until it is, that it should be done now."""
        pending_bytes = sum(state.nbytes for states in self.state.taken.values() for state in states)
        return self.state.excess >= EXCESS_TOKENS or pending_bytes > PENDING_BYTES

    def _rest(self) -> None:
        """Leave the whole budget in RAM to the cache that is in use."""
        other = self.caches[not self.state.is_long]
        if other:
            other.clear_ram()

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

    def _load(self, tokens: Sequence[int], match: Match, reuse: Reuse, shared: int) -> Reuse:
        """Load what the match has of `tokens` behind what is live; the KV of the first `shared` is there, whatever else
        has to be loaded."""
        assert self.cache is not None
        live, wanted = reuse.live, len(tokens)
        self.state.reserve(wanted)
        with self.cache.lease(match) as lease, torch.inference_mode():
            planes, states = self.state.planes, self.state.states
            start = self.state.missing(shared, wanted)
            try:
                loaded = self.cache.load(lease, planes, start, wanted, states=states)
            except BaseException:
                self.state.lose()
                raise
        self._bring_in(tokens[live : loaded.end], start if loaded.end else self.state.first_held)
        end = len(self.state.tokens)
        ended = match.ended if end >= wanted else Ended.CORRUPT
        tiers = loaded.tokens if end > live else {}
        if lease.state:
            tiers = {lease.state.tier: end - live}
        live = end - sum(tiers.values())  # more than before where only a window had to be loaded
        return replace(reuse, live=live, tiers=tiers, kv_load_s=loaded.seconds, ended=ended)

    def _bring_in(self, tokens: Sequence[int], start: int) -> None:
        """Count `tokens` as held, whose KV was loaded from token `start` on; none where a window was not loaded whole."""
        self.state.advance(tokens, first_held=min(self.state.first_held, start))
        self.state.keep(len(self.state.tokens))
