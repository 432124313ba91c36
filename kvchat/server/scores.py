"""Tokens' scores: how many a request asks for, and how each protocol writes them. Computes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvchat.backends.base import Answer, Candidate, Scored, Text
from kvchat.server.reading import Fields

MOST_TOP = 20
"""So many of the likeliest tokens may be asked for, as at OpenAI."""


def asked_of_chat(fields: Fields) -> int | None:
    """How many likeliest tokens stand beside each; None where no scores are asked for. Raises RefusedError."""
    num_top = fields.whole("top_logprobs", 0, MOST_TOP)
    if fields.flag("logprobs"):
        return num_top or 0
    if num_top:
        fields.refuse("top_logprobs", "is only for requests with logprobs: true")
    return None


def asked_of_completion(fields: Fields) -> int | None:
    """The same, as the older endpoint is asked. Raises RefusedError."""
    if fields.raw("logprobs") is False:  # what some clients send for none
        return None
    return fields.whole("logprobs", 0, MOST_TOP)


class ToldScores:
    """The scores of an answer that is streamed, each told once, where they are wanted."""

    def __init__(self, *, are_wanted: bool) -> None:
        self.are_wanted = are_wanted
        self._untold: list[Scored] = []
        self._num_told = 0

    def add(self, text: Text) -> None:
        """These came with a text."""
        self._untold += text.scores

    def rest(self, answer: Answer) -> None:
        """This was all; behind a stop string nothing counts."""
        self._untold = list(answer.scores[self._num_told :])

    def take(self) -> list[Scored]:
        """What was not told yet."""
        told, self._untold = self._untold, []
        self._num_told += len(told)
        return told


def chat_json(scores: Sequence[Scored]) -> dict[str, Any]:
    """As a chat's choice has them: those of all tokens, reasoning and calls too."""
    content = [
        _token_json(scored.token) | {"top_logprobs": [_token_json(one) for one in scored.top]}
        for scored in scores
    ]
    return {"content": content, "refusal": None}


def completion_json(scores: Sequence[Scored], start: int = 0) -> dict[str, Any]:
    """As a completion's choice has them; the first token stands at character `start` of the answer."""
    offsets: list[int] = []
    for scored in scores:
        offsets.append(start)
        start += len(scored.token.text)
    top = [{_name(one): one.logprob for one in (*reversed(scored.top), scored.token)} for scored in scores]
    return {
        "tokens": [_name(scored.token) for scored in scores],
        "token_logprobs": [scored.token.logprob for scored in scores],
        "top_logprobs": top,
        "text_offset": offsets,
    }


def _token_json(one: Candidate) -> dict[str, Any]:
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.bytes)}


def _name(one: Candidate) -> str:
    """A token's text; of part of a character its bytes, as OpenAI writes them."""
    raw = bytes(one.bytes)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
