"""What the first turn of a process pays beside its tokens, paid while nobody waits. Leaves nothing in cache or sequence."""

from __future__ import annotations

import time

from kvchat.backends.answering import Answering
from kvchat.backends.asking import Question
from kvchat.backends.base import Keeping, Options, Role, Turn
from kvchat.backends.loading import Talk

_TURNS = (Turn(Role.SYSTEM, "Be brief."), Turn(Role.USER, "Hello"))
_TOKENS = 2


def rehearse(talk: Talk) -> None:
    """Answer a short question with nothing looked up and nothing kept: template, tokenizer, sampling and the cache's index
    are ready behind it. Raises what an answer raises; then the first message is told."""
    model = talk.model
    model.engine.warm_up(talk.sequence)
    question = Question.of(model, _TURNS, Options(max_tokens=_TOKENS, temperature=1.0, seed=0))
    answering = Answering(talk, question, started=time.perf_counter())
    for _ in answering.events(Keeping("off", saves=False), lambda: False, lambda status: None):
        pass
    if model.engine.cache is not None:
        model.engine.cache.match(model.engine.told(question.tokens))
    talk.sequence.state.keep(0)
    talk.last = None
