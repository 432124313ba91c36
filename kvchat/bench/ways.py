"""The ways in which an answer takes up what was computed before: live, from RAM, from the disk, after a cancel."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import count
from pathlib import Path

import torch

from kvchat.cache.base import CacheSettings
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.engine import Engine
from kvchat.engine.request import Finished, Progress, Request, Reuse, Token
from kvchat.engine.sampling import SamplingParams
from kvchat.models.kv_state import KVState
from kvchat.models.loaded import PAGE_TOKENS, LoadedModel
from kvchat.models.schedule import Schedule

NUM_TOKENS = 10
BLOCK_TOKENS = 16
_NEAR = 8


@dataclass(frozen=True, slots=True)
class _Heard(LoadedModel):
    """A model that remembers its logits by the number of tokens before them."""

    heard: dict[int, torch.Tensor] = field(default_factory=dict)

    def logits(self, tokens: Sequence[int], state: KVState, num_logits: int) -> torch.Tensor:
        logits = LoadedModel.logits(self, tokens, state, num_logits)
        first = len(state.tokens) - num_logits + 1
        self.heard.update({first + row: logits[row].clone() for row in range(num_logits)})
        return logits


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: its ids, and the logits of its first and its last token."""

    ids: list[int]
    logits: list[torch.Tensor]

    def is_as(self, other: Said) -> tuple[bool, bool]:
        """Whether it has the other's ids, and the other's bits."""
        pairs = zip(self.logits, other.logits, strict=True)
        return self.ids == other.ids, self.ids == other.ids and all(torch.equal(a, b) for a, b in pairs)


class Talker:
    """An engine whose cache is changed from way to way; `disk` is a folder of its own."""

    def __init__(self, model: LoadedModel, disk: Path, draft: int | None) -> None:
        self.model = _Heard(**{item.name: getattr(model, item.name) for item in fields(LoadedModel)})
        self.engine = Engine(self.model, draft=draft)
        self.live = self.engine.new_sequence()
        self.engine.pace.measure = lambda num_tokens, seconds: None  # type: ignore[method-assign]  # loading always pays
        self._disk = disk
        self._numbers = count()
        self.draw = random.Random(7)
        self.reuse = Reuse(live=0)

    def say(
        self, prompt: Sequence[int], seed: int | None = None, *, steps: int | None = None, pauses: float = 0.0
    ) -> Said:
        """The answer to a prompt from whatever is held.

        With `steps` it is cancelled after so many forwards; `pauses` is the chance, each time that it is asked between
        two layers, that a forward is broken off, to be done again.
        """
        sampling = SamplingParams() if seed is None else SamplingParams(temperature=0.8, top_k=40, seed=seed)
        request = Request(prompt, sampling, max_tokens=NUM_TOKENS)
        self.model.heard.clear()
        done: list[Progress] = []
        ids: list[int] = []
        for event in self.engine.generate(
            self.live,
            request,
            lambda: steps is not None and len(done) > steps,
            is_paused=lambda: self.draw.random() < pauses,
        ):
            if isinstance(event, Progress):
                done.append(event)
            elif isinstance(event, Token):
                ids.append(event.id)
            elif isinstance(event, Finished):
                self.reuse = event.reuse
        wanted = (len(prompt), len(prompt) + max(0, len(ids) - 1))
        return Said(ids, [self.model.heard[at] for at in wanted if at in self.model.heard])

    def forget(self) -> None:
        """Nothing is live, and no cache is there."""
        self.live.state.keep(0)
        self.engine.cache = None

    def stored(self, tokens: Sequence[int], *, ram_bytes: int = 2**31, on_disk: bool = False) -> None:
        """Nothing is live, and a fresh cache has what was: in RAM as far as it takes it, or on disk."""
        layout = self.engine.kv_layout
        assert layout is not None
        disk = {"disk_bytes": 2**31, "disk_root": self._disk / str(next(self._numbers))} if on_disk else {}
        settings = CacheSettings(ram_bytes=ram_bytes, block_size=BLOCK_TOKENS, **disk)  # type: ignore[arg-type]
        self.engine.cache = PrefixCache(layout, b"exact", settings)
        self.engine.store(self.live)
        if on_disk:
            self.engine.cache.drain(30.0)
            self.engine.cache.clear_ram()
        assert self.live.state.tokens[: len(tokens)] == list(tokens)
        self.live.state.keep(0)

    def num_reused(self, prompt: Sequence[int]) -> int:
        """How many tokens' KV the answer to `prompt` takes up where that of all but the last is held."""
        return Schedule(prompt, self.model, 1).start(len(prompt) - 1)

    def flip(self, place: int) -> None:
        """Flip one bit of the KV of token `place`: the lowest of the exponent, in the greatest number of a plane."""
        numbers = self.draw.choice(self.live.state.planes)[0, place]
        greatest = int(numbers.abs().argmax())
        bits = numbers.view(torch.int16 if numbers.element_size() == 2 else torch.int32)
        bits[greatest] ^= 1 << (7 if numbers.element_size() == 2 else 23)


Way = Callable[[Talker, list[int], int | None], Said]


def _live(talker: Talker, prompt: list[int], seed: int | None) -> Said:
    talker.forget()
    talker.say(prompt[: max(1, len(prompt) * 2 // 3)])
    return talker.say(prompt, seed)


def _again(talker: Talker, prompt: list[int], seed: int | None) -> Said:
    talker.say(prompt, seed)
    return talker.say(prompt, seed)


def _from_ram(talker: Talker, prompt: list[int], seed: int | None) -> Said:
    talker.say(prompt)
    talker.stored(prompt)
    said = talker.say(prompt, seed)
    assert talker.reuse.tiers.get("ram") or len(prompt) <= PAGE_TOKENS, "nothing came from RAM"
    return said


def _from_disk(talker: Talker, prompt: list[int], seed: int | None) -> Said:
    talker.say(prompt)
    talker.stored(prompt, on_disk=True)
    said = talker.say(prompt, seed)
    assert talker.reuse.tiers.get("disk") or len(prompt) <= PAGE_TOKENS, "nothing came from the disk"
    return said


def _branch(talker: Talker, prompt: list[int], seed: int | None) -> Said:
    talker.say(prompt)
    talker.say([*prompt[: max(1, len(prompt) // 2)], *prompt[:9]])
    return talker.say(prompt, seed)


def _cancelled(talker: Talker, prompt: list[int], seed: int | None) -> Said:
    talker.forget()
    talker.engine.chunk_tokens = 40
    talker.say(prompt, steps=talker.draw.randrange(1 + len(prompt) // 40))
    talker.engine.chunk_tokens = 256
    return talker.say(prompt, seed)


def _evicted(talker: Talker, prompt: list[int], seed: int | None) -> Said:
    talker.say(prompt)
    share = talker.draw.uniform(0.2, 0.8)
    talker.stored(prompt, ram_bytes=int(share * len(prompt) * talker.engine.kv_bytes_per_token))
    return talker.say(prompt, seed)


def _paused(talker: Talker, prompt: list[int], seed: int | None) -> Said:
    talker.say(prompt)
    return talker.say(prompt, seed, pauses=0.3 / talker.model.network.num_layers)


def control(talker: Talker, prompt: list[int], seed: int | None) -> Said:
    """With one bit of the KV of a token that is taken up: of a late one, so that layers with a window see it too."""
    talker.say(prompt)
    talker.live.state.keep(len(prompt) - 1)
    end = talker.num_reused(prompt)
    talker.flip(talker.draw.randrange(max(0, end - _NEAR), end))
    return talker.say(prompt, seed)


WAYS: dict[str, Way] = {
    "live": _live,
    "again": _again,
    "RAM": _from_ram,
    "disk": _from_disk,
    "branch and back": _branch,
    "after a cancel": _cancelled,
    "partly evicted": _evicted,
    "paused": _paused,
}
