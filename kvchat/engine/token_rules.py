"""Which tokens must not come next, as a model's settings say, with transformers' results. Knows no text and no logits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What is ruled out: `suppressed` tokens always, `first_suppressed` ones as the first of an answer, each of `banned`
    as a sequence, `ends` before there are `min_tokens`, and a run of `no_repeat_ngram` tokens that was there before."""

    suppressed: tuple[int, ...] = ()
    first_suppressed: tuple[int, ...] = ()
    banned: tuple[tuple[int, ...], ...] = ()
    ends: frozenset[int] = frozenset()
    min_tokens: int = 0
    no_repeat_ngram: int = 0

    @classmethod
    def of(
        cls,
        settings: Mapping[str, Any],
        ends: frozenset[int],
        *,
        prompt_tokens: int,
        unfinished_tokens: int = 0,
    ) -> TokenRules:
        """The rules of a model's generation settings behind a prompt, whose last tokens may be an unfinished answer."""
        least = max(settings.get("min_new_tokens", 0), settings.get("min_length", 0) - prompt_tokens)
        first = () if unfinished_tokens else tuple(settings.get("begin_suppress_tokens", ()))
        banned = (tuple(words) for words in settings.get("bad_words_ids", ()) if words)
        return cls(
            suppressed=tuple(settings.get("suppress_tokens", ())),
            first_suppressed=first,
            banned=tuple(words for words in banned if len(words) > 1 or words[0] not in ends),
            ends=ends,
            min_tokens=max(0, least - unfinished_tokens),
            no_repeat_ngram=settings.get("no_repeat_ngram_size", 0),
        )

    def __bool__(self) -> bool:
        """Whether anything is ruled out at all."""
        some = self.suppressed or self.first_suppressed or self.banned
        return bool(some) or self.min_tokens > 0 or self.no_repeat_ngram > 0


class Ruler:
    """Applies rules behind a prompt, token after token of one answer."""

    def __init__(self, rules: TokenRules, prompt: Sequence[int]) -> None:
        self._rules = rules
        self._tokens: list[int] = []
        self._num_chosen = -len(prompt)
        self._followers: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        for token in prompt:
            self.follow(token)

    def follow(self, token: int) -> None:
        """Take a token as the one that came next."""
        if self._rules.no_repeat_ngram and len(self._tokens) >= self._rules.no_repeat_ngram - 1:
            self._followers[self._last(self._rules.no_repeat_ngram - 1)].add(token)
        self._tokens.append(token)
        self._num_chosen += 1

    def ruled_out(self) -> set[int]:
        """The tokens that must not come next."""
        rules = self._rules
        out = set(rules.suppressed)
        if self._num_chosen == 0:
            out.update(rules.first_suppressed)
        if self._num_chosen < rules.min_tokens:
            out |= rules.ends
        out.update(words[-1] for words in rules.banned if self._last(len(words) - 1) == words[:-1])
        if rules.no_repeat_ngram and len(self._tokens) >= rules.no_repeat_ngram - 1:
            out |= self._followers.get(self._last(rules.no_repeat_ngram - 1), set())
        return out

    def _last(self, count: int) -> tuple[int, ...]:
        return tuple(self._tokens[len(self._tokens) - count :]) if 0 < count <= len(self._tokens) else ()
