"""One conversation led through everything that reuses state; every forward's logits against a computation from scratch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from kvchat.cache.base import CacheSettings
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.request import EngineEvent, Finished, Request, Token
from kvchat.models.kinds import ids_of
from kvchat.models.kv_state import KVState
from kvchat.models.loaded import LoadedModel
from kvchat.models.schedule import Schedule
from tests.engine.talk import Talk
from tests.families.shrink import WINDOW, random_tokens
from tests.tiny import said

Plain = Callable[[list[int]], torch.Tensor]
"""Token ids -> the logits of every position, [tokens, vocab], from scratch."""
TOLERANCE = 1e-4
"""The largest difference of a logit, in float32, that another split of the same sums may make."""
CHUNK = 16
ANSWER = 4
MESSAGE = 9


@dataclass(frozen=True, slots=True)
class Watched(LoadedModel):
    """A model that remembers the logits it gave, and what it gave them for."""

    seen: list[tuple[list[int], torch.Tensor]] = field(default_factory=list)

    def logits(self, tokens: Any, state: KVState, num_logits: int) -> torch.Tensor:
        logits = LoadedModel.logits(self, tokens, state, num_logits)
        self.seen.append((list(state.tokens), logits[-1].clone()))
        return logits


def watched(loaded: LoadedModel) -> Watched:
    """The same model, watched."""
    return Watched(**{item.name: getattr(loaded, item.name) for item in fields(LoadedModel)})


class Journey:
    """What a person does with one model, stage by stage: `differences` is the largest one of each stage."""

    def __init__(self, loaded: LoadedModel, plain: Plain, folder: Path) -> None:
        self.loaded = watched(loaded)
        self.plain = plain
        self.folder = folder
        self.differences: dict[str, float] = {}
        self.inexact: set[str] = set()
        self.reused: dict[str, Finished] = {}
        self.engine = self._start()

    def run(self) -> None:
        """All stages, in the order in which they need each other."""
        with self._stage("prefill"):
            talk = self.say("prefill", random_tokens(37))
        with self._stage("continued"):
            for turn in (1, 2):
                talk = self.say("continued", talk + random_tokens(MESSAGE, seed=turn))
        with self._stage("ram"):
            self.say("other", random_tokens(24, seed=7))
            self.say("ram", talk + random_tokens(MESSAGE, seed=3))
        with self._stage("branch"):
            self.say("branch", talk[:-5] + random_tokens(MESSAGE, seed=4))
        with self._stage("window"):
            assert len(talk) > 41 + WINDOW, "the branch lies before what a sliding layer still sees"
            self.say("window", talk[:41] + random_tokens(MESSAGE, seed=5))
        with self._stage("cancel"):
            self._cancel(talk)
        with self._stage("disk"):
            self.engine.close()
            self.engine = self._start()
            self.say("disk", talk + random_tokens(MESSAGE, seed=3))

    def say(self, name: str, prompt: list[int], *, given_up_after: int | None = None) -> list[int]:
        """Answer `prompt` and keep everything, as after a turn; the conversation with its answer."""
        events: list[EngineEvent] = []
        request = Request(prompt, max_tokens=ANSWER)
        is_given_up = lambda: given_up_after is not None and len(events) > given_up_after  # noqa: E731
        for event in self.engine.generate(request, is_given_up):
            events.append(event)
        assert isinstance(events[-1], Finished)
        self.reused[name] = events[-1]
        self.engine.store()
        return prompt + said(self.loaded, [event.id for event in events if isinstance(event, Token)])

    def _cancel(self, talk: list[int]) -> None:
        """Give up in the prefill and in the answer, and go on from there."""
        prompt = talk + random_tokens(40, seed=6)
        for steps in (1, 4, 6):
            said = self.say("given up", prompt, given_up_after=steps)
        self.say("cancel", said + random_tokens(MESSAGE, seed=8))

    def _start(self) -> Talk:
        """An engine as after a program's start: nothing live, nothing in RAM."""
        engine = Talk(self.loaded, chunk_tokens=CHUNK)
        engine.warm_up()
        engine.pace.prefill_s_per_token = engine.pace.step_s = 0.0  # so that loading and going on always pay
        settings = CacheSettings(ram_bytes=2**24, disk_bytes=2**26, disk_root=self.folder, block_size=8)
        if engine.kv_layout is not None:
            engine.cache = PrefixCache(engine.kv_layout, b"family", settings, warn=lambda message: None)
        self.loaded.seen.clear()
        return engine

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.loaded.seen.clear()
        yield
        self.differences[name] = self.largest_difference()
        if self.loaded.is_exact and not all(self._is_exact(*seen) for seen in self.loaded.seen[-2:]):
            self.inexact.add(name)

    def _is_exact(self, tokens: list[int], logits: torch.Tensor) -> bool:
        """Whether these are to the bit the logits of the engine's own computation from scratch."""
        loaded = LoadedModel(**{item.name: getattr(self.loaded, item.name) for item in fields(LoadedModel)})
        state, schedule = loaded.new_state(), Schedule(tokens, loaded, 40)
        while (start := len(state.tokens)) < len(tokens):
            anew = loaded.forward(tokens[start : schedule.end(start)], state)
        return torch.equal(anew, logits)

    def largest_difference(self) -> float:
        """Of all logits since the stage began, to those computed from scratch in one go."""
        expected: dict[tuple[int, ...], torch.Tensor] = {}
        largest = 0.0
        for tokens, logits in sorted(self.loaded.seen, key=lambda seen: -len(seen[0])):
            longer = next((known for known in expected if list(known[: len(tokens)]) == tokens), None)
            if longer is None:
                longer = tuple(tokens)
                expected[longer] = self.plain(ids_of(tokens))
            difference = (logits - expected[longer][len(tokens) - 1]).abs().max()
            largest = max(largest, float(difference.nan_to_num(torch.inf)))
        return largest


def plain_logits(model: Any) -> Plain:
    """All positions' logits, [tokens, vocab], by transformers alone: its own attention and experts, no cache, all in one go."""

    def compute(tokens: list[int]) -> torch.Tensor:
        used, experts = model.config._attn_implementation, model.get_experts_implementation()
        model.set_attn_implementation("eager")
        if model._can_set_experts_implementation():
            model.set_experts_implementation("eager")
        try:
            with torch.inference_mode():
                ids = torch.tensor([tokens], device=model.device)
                logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0].float()
        finally:
            model.set_attn_implementation(used)
            if model._can_set_experts_implementation():
                model.set_experts_implementation(experts)
        return logits

    return compute
