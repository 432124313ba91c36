"""The decode loop: from the prompt's last logits to the last token of the answer. Knows no text and no cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from kvchat.engine.request import Finish, Request, Token
from kvchat.engine.sampling import Sampler
from kvchat.models.kv_state import KVState
from kvchat.models.loader import LoadedModel


class Decoding:
    """One answer being decoded behind the prompt that `state` holds; how it went is in its attributes."""

    def __init__(self, loaded: LoadedModel, state: KVState, request: Request) -> None:
        self.reason = Finish.LENGTH
        self.num_generated = 0
        self._loaded = loaded
        self._state = state
        self._request = request
        self._room = loaded.context - len(request.prompt)
        wanted = request.max_tokens
        self._limit = self._room if wanted is None else min(self._room, wanted)

    def tokens(self, logits: torch.Tensor, is_cancelled: Callable[[], bool]) -> Iterator[Token]:
        """The answer's tokens from the prompt's last logits, [vocab] in float32.

        Each is computed when the next is asked for, the last one too: the next turn finds the whole answer held.
        """
        sampler = Sampler(self._request.sampling, self._request.prompt, logits.device)
        while self.num_generated < self._limit:
            if is_cancelled():
                self.reason = Finish.CANCELLED
                return
            token = sampler.choose(logits)
            if token in self._request.stop_ids:
                self.reason = Finish.STOP
                return
            self.num_generated += 1
            yield Token(token)
            if self.num_generated < self._room:
                logits = self._loaded.forward([token], self._state)
