"""What was sent to a server and what it reported: how much of a next prompt it may hold, and why it reused so much.

All that is said of a server's cache is in this file. Knows no HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import gcd

from kvchat.backends.base import CacheReport, Role, Turn
from kvchat.backends.inspection import CacheRow, CacheTotals, CacheView
from kvchat.cache.stats import TierUse

TIER = "server"
"""What a server's cache is called among the tiers."""
NOT_REPORTED = "not reported"
"""The reason where a server says nothing of its cache."""
BLOCK_TOKENS = 16
"""vLLM's block on a GPU; a server that keeps whole blocks lacks the rest of the last one."""
LONGEST_BLOCK_TOKENS = 256
"""What one report alone can tell of a block's length; several tell more."""
UNSAID = "the answer ended before the server said what it had cached"
"""The reason where a server reports with the end of an answer, which did not come."""

_KEPT = 32
_CONTEXT_TOKENS = 8
_CONTEXT_CHARACTERS = 32
_TOKENS_A_CHARACTER = 0.25
_SMOOTHING = 0.5

Decode = Callable[[Iterable[int]], str]


@dataclass(frozen=True, slots=True)
class Sent:
    """One prompt with its answer as a server has them: the turns, their ids where they are known, and all its tokens."""

    turns: tuple[Turn, ...]
    tokens: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt that was just answered: its turns, and its ids where they are known."""

    turns: tuple[Turn, ...]
    prompt_tokens: int
    ids: tuple[int, ...] = ()


class Ledger:
    """The last prompts that one server was sent, and how fast it computed them."""

    def __init__(self, remedy: str) -> None:
        self.totals = CacheTotals()
        self.turn = CacheTotals()
        self.prefill_s_per_token = 0.0
        self._remedy = remedy
        self._sent: deque[Sent] = deque(maxlen=_KEPT)
        self._tokens_a_character = _TOKENS_A_CHARACTER
        self._reports = False
        self._counts: set[int] = set()  # of cached tokens, as reported; 0 says nothing

    def report(
        self, asked: Asked, cached: int | None, retokenised: int, decode: Decode | None
    ) -> CacheReport:
        """Why so much was reused; `cached` None where the server does not say."""
        if cached is None:
            remedy = f"; {self._remedy}" if self._remedy else ""
            return server_report(0, f"{NOT_REPORTED} by the server{remedy}", is_reported=False)
        self._reports = True
        self._counts |= {cached} if cached and len(self._counts) < _KEPT else set()
        last, held = self._nearest(asked)
        reason = self._reason(asked, cached, last, held, retokenised)
        was, now = _difference(asked, last, decode)
        saved_s = cached * self.prefill_s_per_token
        report = server_report(cached, reason, saved_s=saved_s)
        return replace(report, was=was, now=now)

    def note(self, sent: Sent, prompt_tokens: int, cached: int | None, prompt_ms: float) -> None:
        """A prompt was answered: remember it, its speed, and how long its text is in tokens."""
        self._sent.append(sent)
        characters = sum(len(turn.text) for turn in sent.turns)
        if prompt_tokens and characters:
            self._tokens_a_character = sent.tokens / characters
        computed = prompt_tokens - (cached or 0)
        if computed > 0 and prompt_ms > 0:
            speed, known = prompt_ms / 1e3 / computed, self.prefill_s_per_token
            self.prefill_s_per_token = speed if not known else known + _SMOOTHING * (speed - known)
        self.turn = CacheTotals(
            asked_tokens=prompt_tokens,
            tier_tokens={TIER: cached or 0},
            saved_s=(cached or 0) * self.prefill_s_per_token,
        )
        self.totals = self.totals + self.turn

    @property
    def block(self) -> int:
        """Tokens that the server stores as one, by its reports: what they all are multiples of, vLLM's on a CPU of 128."""
        divisor = gcd(*self._counts)
        if len(self._counts) < 2:
            divisor = min(divisor & -divisor, LONGEST_BLOCK_TOKENS)
        return max(divisor, BLOCK_TOKENS)

    def held_before(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """The ids of the prompt and answer that these turns go on from; none where they are not known."""
        said = tuple(turns)
        fitting = (
            sent for sent in reversed(self._sent) if sent.ids and said[: len(sent.turns)] == sent.turns
        )
        return max((sent.ids for sent in fitting), key=len, default=())

    def view(self, turns: Sequence[Turn], ids: tuple[int, ...], *, has_rows: bool) -> CacheView:
        """What the server would find of a conversation, by what it was sent before. `ids` may be unknown."""
        counts = [self._estimate(turn.text) for turn in turns]
        prompt_tokens = len(ids) if ids else sum(counts)
        _, held = self._nearest(Asked(tuple(turns), prompt_tokens, ids))
        held = min(held, prompt_tokens) if self._reports else 0
        rows = _rows(turns, counts, held, self.prefill_s_per_token) if has_rows else ()
        return CacheView(
            mode="server",
            codec="raw",
            block_size=0,
            tiers=(TierUse(TIER, 0, 0),),
            arena_used=0,
            rows=rows,
            prompt_tokens=prompt_tokens,
            cached_tokens=held,
            compute_s=(prompt_tokens - held) * self.prefill_s_per_token,
            turn=self.turn,
            process=self.totals,
        )

    def _estimate(self, text: str) -> int:
        return max(1, round(len(text) * self._tokens_a_character)) if text else 0

    def _nearest(self, asked: Asked) -> tuple[Sent | None, int]:
        """What was sent before and shares most with a prompt, and how many tokens that is, as near as it is known."""
        best: tuple[Sent | None, int] = (self._sent[-1] if self._sent else None, 0)
        for sent in reversed(self._sent):
            held = self._shared_tokens(sent, asked)
            if held > best[1]:
                best = (sent, held)
        return best

    def _shared_tokens(self, sent: Sent, asked: Asked) -> int:
        if sent.ids and asked.ids:
            return _common(sent.ids, asked.ids)
        shared = _common(sent.turns, asked.turns)
        if shared == len(sent.turns):
            return min(sent.tokens, asked.prompt_tokens)
        characters = sum(len(turn.text) for turn in sent.turns)
        begun = sum(len(turn.text) for turn in sent.turns[:shared])
        return int(sent.tokens * begun / characters) if characters else 0

    def _reason(self, asked: Asked, cached: int, last: Sent | None, held: int, retokenised: int) -> str:
        if retokenised:
            tokens = "token" if retokenised == 1 else "tokens"
            return f"encoding the text anew changed {retokenised} {tokens} of what was said"
        if cached >= (asked.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS:
            return "all of it was held, but for what is always computed"
        if last is None:
            return "first use" if not cached else "new text"
        if cached + self.block + 1 < held:  # the last token of all is never stored
            return f"evicted, or another replica answered: {held} tokens were sent before"
        if _system_of(asked.turns) != _system_of(last.turns):
            return "edited system prompt"
        number = _common(last.turns, asked.turns)
        if number < min(len(last.turns), len(asked.turns) - 1):
            return f"message {number + 1} is not what was sent before"
        return "new text"


def server_report(cached: int, reason: str, *, saved_s: float = 0.0, is_reported: bool = True) -> CacheReport:
    """What a server says of its cache in the form that all reports have: its cache counts as one tier."""
    return CacheReport(0, {TIER: cached}, cached, reason, saved_s=saved_s, is_reported=is_reported)


def _rows(
    turns: Sequence[Turn], counts: Sequence[int], held: int, s_per_token: float
) -> tuple[CacheRow, ...]:
    rows: list[CacheRow] = []
    start = 0
    for turn, tokens in zip(turns, counts, strict=True):
        there = min(max(held - start, 0), tokens)
        rows.append(CacheRow(turn.role, turn.text[:80], tokens, 0, {TIER: there}, 0, there * s_per_token))
        start += tokens
    return tuple(rows)


def _difference(asked: Asked, last: Sent | None, decode: Decode | None) -> tuple[str, str]:
    """The texts around the first token, or else the first message's first character, that is not as it was before."""
    if last is None:
        return "", ""
    if last.ids and asked.ids and decode:
        at = _common(last.ids, asked.ids)
        pieces = [
            (decode(ids[max(0, at - _CONTEXT_TOKENS) : at]), decode(ids[at : at + _CONTEXT_TOKENS]))
            for ids in (last.ids, asked.ids)
        ]
    else:
        number = _common(last.turns, asked.turns)
        if number >= min(len(last.turns), len(asked.turns)):
            return "", ""
        texts = last.turns[number].text, asked.turns[number].text
        at = _common(*texts)
        size = _CONTEXT_CHARACTERS
        pieces = [(text[max(0, at - size) : at], text[at : at + size]) for text in texts]
    was, now = (f"{before}|{behind}" if behind else "" for before, behind in pieces)
    return was, now


def _system_of(turns: Sequence[Turn]) -> str:
    return turns[0].text if turns and turns[0].role is Role.SYSTEM else ""


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences begin with alike."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next(at for at in range(size) if one[at] != other[at])
