"""What a server is asked, whatever the form: the turns or their ids, and the options that it takes. Sends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvchat.backends.base import Options, Role, Turn
from kvchat.backends.remote.server import Kind, Server


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the turns, or the `ids` that they are; `closing_ids` end an answer, `salt` parts caches.

    With `wants_ids` text is sent, and the ids of the answer are asked for, to see what encoding it anew changes.
    """

    server: Server
    turns: tuple[Turn, ...]
    options: Options
    ids: tuple[int, ...] = ()
    closing_ids: tuple[int, ...] = ()
    salt: str | None = None
    wants_ids: bool = False

    @property
    def is_going_on(self) -> bool:
        """Whether the turns end with an unfinished answer."""
        return self.turns[-1].role is Role.ASSISTANT

    @property
    def max_tokens(self) -> int | None:
        """The longest answer; of ids that are known, what the context has room for."""
        room = self.server.model.context - len(self.ids) if self.ids and self.server.model.context else None
        wanted = self.options.max_tokens
        return room if wanted is None else wanted if room is None else min(wanted, room)


def messages_json(turns: Sequence[Turn], thoughts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The messages; of an answer the reasoning under each name in `thoughts`, for the server's template to use or drop."""
    return [
        {"role": str(turn.role), "content": turn.text}
        | (dict.fromkeys(thoughts, turn.reasoning) if turn.reasoning else {})
        for turn in turns
    ]


def unsent(options: Options, server: Server) -> list[str]:
    """The options that were asked for and that this kind of server does not take."""
    known = server.features.sampling
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    left = [name for name in names if getattr(options, name) is not None and name not in known]
    takes_think = server.features.takes_template_options or server.kind is Kind.ANTHROPIC
    return left + (["think"] if options.think is not None and not takes_think else [])


def sampling_json(question: Question, *, has_stop: bool = True) -> dict[str, Any]:
    """The options that this kind of server takes, and the salt of its cache."""
    options, features = question.options, question.server.features
    values = {theirs: getattr(options, ours) for ours, theirs in features.sampling.items()}
    body = {name: value for name, value in values.items() if value is not None}
    if has_stop and options.stop:
        body["stop"] = list(options.stop)
    if question.salt:
        body["cache_salt"] = question.salt
    return body
