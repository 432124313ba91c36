"""Whether the cache changes an answer: prompts answered from scratch, and in every way in which state is reused.

Compared are the ids of the answer, and the logits of its first and its tenth token to the bit. The control turns over one
bit of the KV in each prompt, which has to be seen.
"""

from __future__ import annotations

import inspect
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvchat.backends.loading import ReadyModel, load
from kvchat.bench.measure import english, isolated
from kvchat.bench.ways import WAYS, Talker, control
from kvchat.config import Config
from kvchat.errors import KvchatError
from kvchat.models.loaded import LoadedModel
from kvchat.models.text.template import Message

NUM_PROMPTS = 200
CHUNKS = (16, 48, 100, 256, 512, 1024)
"""Each prompt is computed from scratch with two of these, in turn."""
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


CONTROL = "control: one bit of KV"


def measure(config: Config, *, num_prompts: int = NUM_PROMPTS) -> Iterator[ExactRow]:
    """One row per way, of the model that `config` says."""
    loaded = load(isolated(config, ram=0), lambda status: None, lambda notice: None).model
    yield from compare(loaded.engine.loaded, prompts(loaded, num_prompts), draft=config.model.draft)


def compare(
    model: LoadedModel, prompts: Iterable[list[int]], *, draft: int | None = None
) -> Iterator[ExactRow]:
    """One row per way, of a model that promises bits. Every other prompt is answered greedily, the others sampled with a
    seed. The control is left out of a prompt whose tokens are all computed anew."""
    found: dict[str, list[tuple[bool, bool]]] = {
        **{name: [] for name in WAYS},
        **{f"chunks of {size}": [] for size in CHUNKS},
        CONTROL: [],
    }
    with tempfile.TemporaryDirectory(prefix="kvchat-exact-") as folder:
        talker = Talker(model, Path(folder), draft)
        for number, prompt in enumerate(prompts):
            seed = number if number % 2 else None
            talker.forget()
            expected = talker.say(prompt, seed)
            for size in (CHUNKS[number % 6], CHUNKS[(number + 3) % 6]):
                talker.forget()
                talker.engine.chunk_tokens = size
                found[f"chunks of {size}"].append(talker.say(prompt, seed).is_as(expected))
            talker.engine.chunk_tokens = 256
            ways = {**WAYS, CONTROL: control} if talker.num_reused(prompt) else WAYS
            for name, way in ways.items():
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
