"""Whether the cache changes an answer: prompts answered from scratch, and in every way in which state is reused.

Compared are the ids of the answer, and the logits of its first and its tenth token to the bit. The control turns over one
bit of the KV in each prompt, which has to be seen.
"""

from __future__ import annotations

import inspect
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import Any

import torch

from kvchat.backends.loading import ReadyModel, load
from kvchat.bench.measure import english, isolated
from kvchat.cache.base import CacheSettings
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.config import Config
from kvchat.engine.engine import Engine
from kvchat.engine.request import Progress, Request, Reuse, Token
from kvchat.engine.sampling import SamplingParams
from kvchat.errors import KvchatError
from kvchat.models.kv_state import KVState
from kvchat.models.loaded import PAGE_TOKENS, LoadedModel
from kvchat.models.text.template import Message

NUM_PROMPTS = 200
NUM_TOKENS = 10
CHUNKS = (16, 48, 100, 256, 512, 1024)
"""Each prompt is computed from scratch with two of these, in turn."""
BLOCK_TOKENS = 16
_CJK = (
    "请用一句话说明为什么天空是蓝色的，然后给出一个例子。",
    "東京から京都まで新幹線で何時間かかりますか。途中の駅も教えてください。",
    "다음 문장을 영어로 번역하고 문법을 설명해 주세요. 오늘은 날씨가 아주 좋습니다.",
)
_QUESTIONS = (
    "Why is the sky blue?",
    "What is the capital of France?",
    "Name three rivers.",
    "How do bees find home?",
)


class InexactError(KvchatError):
    """The cache changed an answer, or what was damaged on purpose went unnoticed."""


@dataclass(frozen=True, slots=True)
class ExactRow:
    """One way to come to an answer: in how many of the `prompts` its ids were the `same`, and its logits to the `bit`.

    Of the control, how many went unnoticed.
    """

    way: str
    prompts: int
    same_ids: int
    same_bits: int

    def to_json(self) -> dict[str, Any]:
        return {
            "bench": "exact",
            "way": self.way,
            "prompts": self.prompts,
            "same_ids": self.same_ids,
            "same_bits": self.same_bits,
        }

    def cells(self) -> dict[str, str]:
        return {
            "way": self.way,
            "prompts": str(self.prompts),
            "same ids": str(self.same_ids),
            "same bits": str(self.same_bits),
        }


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
class _Said:
    """An answer: its ids, and the logits of its first and its last token."""

    ids: list[int]
    logits: list[torch.Tensor]

    def is_as(self, other: _Said) -> tuple[bool, bool]:
        """Whether it has the other's ids, and the other's bits."""
        pairs = zip(self.logits, other.logits, strict=True)
        return self.ids == other.ids, self.ids == other.ids and all(torch.equal(a, b) for a, b in pairs)


class _Talker:
    """An engine whose cache is changed from way to way; `disk` is a folder of its own."""

    def __init__(self, loaded: ReadyModel, disk: Path, draft: int | None) -> None:
        model = loaded.engine.loaded
        self.model = _Heard(**{item.name: getattr(model, item.name) for item in fields(LoadedModel)})
        self.engine = Engine(self.model, draft=draft)
        self.live = self.engine.new_sequence()
        self.engine.pace.measure = lambda num_tokens, seconds: None  # type: ignore[method-assign]  # loading always pays
        self._disk = disk
        self._numbers = count()
        self.draw = random.Random(7)
        self.reuse = Reuse(live=0)

    def say(self, prompt: Sequence[int], seed: int | None = None, *, steps: int | None = None) -> _Said:
        """The answer to a prompt from whatever is held; with `steps` it is cancelled after so many forwards."""
        sampling = SamplingParams() if seed is None else SamplingParams(temperature=0.8, top_k=40, seed=seed)
        request = Request(prompt, sampling, max_tokens=NUM_TOKENS)
        self.model.heard.clear()
        done: list[Progress] = []
        ids: list[int] = []
        for event in self.engine.generate(
            self.live, request, lambda: steps is not None and len(done) > steps
        ):
            if isinstance(event, Progress):
                done.append(event)
            elif isinstance(event, Token):
                ids.append(event.id)
            else:
                self.reuse = event.reuse
        wanted = (len(prompt), len(prompt) + max(0, len(ids) - 1))
        return _Said(ids, [self.model.heard[at] for at in wanted if at in self.model.heard])

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

    def flip(self, place: int) -> None:
        """Flip one bit of the KV of token `place`."""
        plane = self.draw.choice(self.live.state.planes)
        numbers = plane[0, place].view(torch.int16 if plane.element_size() == 2 else torch.int32)
        numbers[self.draw.randrange(len(numbers))] ^= 1 << (7 if plane.element_size() == 2 else 23)


_Way = Callable[[_Talker, list[int], int | None], _Said]


def _live(talker: _Talker, prompt: list[int], seed: int | None) -> _Said:
    talker.forget()
    talker.say(prompt[: max(1, len(prompt) * 2 // 3)])
    return talker.say(prompt, seed)


def _again(talker: _Talker, prompt: list[int], seed: int | None) -> _Said:
    talker.say(prompt, seed)
    return talker.say(prompt, seed)


def _from_ram(talker: _Talker, prompt: list[int], seed: int | None) -> _Said:
    talker.say(prompt)
    talker.stored(prompt)
    said = talker.say(prompt, seed)
    assert talker.reuse.tiers.get("ram") or len(prompt) <= PAGE_TOKENS, "nothing came from RAM"
    return said


def _from_disk(talker: _Talker, prompt: list[int], seed: int | None) -> _Said:
    talker.say(prompt)
    talker.stored(prompt, on_disk=True)
    said = talker.say(prompt, seed)
    assert talker.reuse.tiers.get("disk") or len(prompt) <= PAGE_TOKENS, "nothing came from the disk"
    return said


def _branch(talker: _Talker, prompt: list[int], seed: int | None) -> _Said:
    talker.say(prompt)
    talker.say([*prompt[: max(1, len(prompt) // 2)], *prompt[:9]])
    return talker.say(prompt, seed)


def _cancelled(talker: _Talker, prompt: list[int], seed: int | None) -> _Said:
    talker.forget()
    talker.engine.chunk_tokens = 40
    talker.say(prompt, steps=talker.draw.randrange(1 + len(prompt) // 40))
    talker.engine.chunk_tokens = 256
    return talker.say(prompt, seed)


def _evicted(talker: _Talker, prompt: list[int], seed: int | None) -> _Said:
    talker.say(prompt)
    share = talker.draw.uniform(0.2, 0.8)
    talker.stored(prompt, ram_bytes=int(share * len(prompt) * talker.engine.kv_bytes_per_token))
    return talker.say(prompt, seed)


def _control(talker: _Talker, prompt: list[int], seed: int | None) -> _Said:
    talker.say(prompt)
    talker.live.state.keep(len(prompt) - 1)
    talker.flip(talker.draw.randrange(len(prompt) - 1))
    return talker.say(prompt, seed)


WAYS: dict[str, _Way] = {
    "live": _live,
    "again": _again,
    "RAM": _from_ram,
    "disk": _from_disk,
    "branch and back": _branch,
    "after a cancel": _cancelled,
    "partly evicted": _evicted,
}
CONTROL = "control: one bit of KV"


def measure(config: Config, *, num_prompts: int = NUM_PROMPTS) -> Iterator[ExactRow]:
    """One row per way. Every other prompt is answered greedily, the others sampled with a seed."""
    loaded = load(isolated(config, ram=0), lambda status: None, lambda notice: None).model
    found: dict[str, list[tuple[bool, bool]]] = {
        **{name: [] for name in WAYS},
        **{f"chunks of {size}": [] for size in CHUNKS},
        CONTROL: [],
    }
    with tempfile.TemporaryDirectory(prefix="kvchat-exact-") as folder:
        talker = _Talker(loaded, Path(folder), config.model.draft)
        for number, prompt in enumerate(prompts(loaded, num_prompts)):
            seed = number if number % 2 else None
            talker.forget()
            expected = talker.say(prompt, seed)
            for size in (CHUNKS[number % 6], CHUNKS[(number + 3) % 6]):
                talker.forget()
                talker.engine.chunk_tokens = size
                found[f"chunks of {size}"].append(talker.say(prompt, seed).is_as(expected))
            talker.engine.chunk_tokens = 256
            for name, way in {**WAYS, CONTROL: _control}.items():
                found[name].append(way(talker, prompt, seed).is_as(expected))
    for name, results in found.items():
        if results:
            yield ExactRow(name, len(results), sum(a for a, _ in results), sum(b for _, b in results))


def check(rows: Sequence[ExactRow]) -> None:
    """Raises InexactError if an answer changed, or if a flipped bit changed none."""
    wrong = [
        row.way for row in rows if (row.same_bits > 0 if row.way == CONTROL else row.same_bits < row.prompts)
    ]
    if wrong:
        raise InexactError(
            f"the same prompt did not give the same bits: {', '.join(wrong)}",
            "on a CPU, please report this with the output of kvchat doctor; elsewhere it is not promised",
        )


def prompts(loaded: ReadyModel, number: int) -> Iterator[list[int]]:
    """Prompts of many kinds: questions, long texts, code, Chinese, Japanese and Korean, chats of up to ten turns."""
    tokenizer, draw = loaded.tokenizer, random.Random(3)
    most = min(1500, loaded.engine.loaded.context // 2)
    text = english(min(most, 1200), tokenizer.count)
    code = inspect.getsource(random.Random)
    for index in range(number):
        question = f"{_QUESTIONS[index % len(_QUESTIONS)]} ({index})"
        kind = index % 5
        if kind == 1:
            start = draw.randrange(len(text) // 2)
            question = f"{text[start : start + draw.choice((400, 900, 4000))]}\n\n{question}"
        elif kind == 2:
            start = draw.randrange(len(code) - 900)
            question = (
                f"```python\n{code[start : start + draw.randrange(100, 900)]}\n```\nWhat is wrong here?"
            )
        elif kind == 3:
            question = "\n".join(draw.sample(_CJK, draw.randint(1, 3))) + f" {index}"
        messages = _chat(tokenizer.encode_as_text, text, draw) if kind == 4 else []
        tokens = loaded.template.tokens([*messages, Message("user", question)])
        yield loaded.engine.told(tokens[-most:])


def _chat(encode: Callable[[str], Sequence[int]], text: str, draw: random.Random) -> list[Message]:
    said: list[Message] = []
    for _ in range(draw.randint(1, 9)):
        start = draw.randrange(len(text) - 300)
        answer = text[start : start + draw.randrange(20, 150)].strip()
        said += [Message("user", text[start + 150 : start + draw.randrange(160, 300)])]
        said += [Message("assistant", answer, tokens=encode(answer))]
    return said
