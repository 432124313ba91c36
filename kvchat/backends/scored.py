"""Tokens and their scores as a reader gets them: each with its text and its bytes. Knows no answer."""

from __future__ import annotations

from kvchat.backends.base import Candidate, Scored
from kvchat.engine.request import Token
from kvchat.models.text.token_bytes import bytes_of
from kvchat.models.text.tokenizer import ChatTokenizer


class TokenTexts:
    """What tokens of one tokenizer read as; each is looked up once."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, tuple[int, ...]]] = {}

    def scored(self, token: Token) -> Scored:
        """A token that has a score, and the others that might have stood there."""
        assert token.score is not None
        top = tuple(self._candidate(*one) for one in token.score.top)
        return Scored(self._candidate(token.id, token.score.logprob), top)

    def _candidate(self, token: int, logprob: float) -> Candidate:
        if token not in self._known:
            raw = bytes_of(self._tokenizer, token)
            self._known[token] = raw.decode("utf-8", "replace"), tuple(raw)
        return Candidate(token, *self._known[token], logprob)
