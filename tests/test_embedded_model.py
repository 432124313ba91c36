"""The embedded model for real: fetched as a user would fetch it, and compared with transformers' own generation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvchat.backends.base import Answer, Done, Options, Role, Turn
from kvchat.backends.local import LocalBackend
from kvchat.bench.lookup import TASKS
from kvchat.cache.block import common_prefix
from kvchat.config import DEFAULT_MODEL, PathsConfig, load_config
from kvchat.models.loaded import LoadedModel
from kvchat.models.sources.catalog import Catalog
from kvchat.models.weights.mode import WeightsMode
from tests.models.gguf.test_file import model_of

MODELS = Path(os.environ["KVCHAT_MODELS"]) if os.environ.get("KVCHAT_MODELS") else PathsConfig().models

QUESTIONS = """What is the capital of France?
Write a haiku about rain.
Explain recursion to a child.
List three colours.
What is 2+2?
Tell me about Rome.
Translate 'good morning' to Spanish.
Who wrote Hamlet?
Why is the sky blue?
Give me a short recipe for bread.
Name a mammal that lives in the sea.
What is a list in Python?
Say something funny.
How do birds fly?
What is gravity?
Summarise the plot of Cinderella.
What is the tallest mountain?
Define entropy in one sentence.
Describe a sunset.
Goodbye!""".splitlines()


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBackend]:
    folder = tmp_path_factory.mktemp("kv")
    flags = {"model.dtype": "float32", "model.weights": "native"}
    flags |= {"paths.cache": folder, "paths.models": MODELS, "cache.ram": "300MB"}
    backend = LocalBackend(load_config(flags, environ={"KVCHAT_CONFIG": str(folder / "none.toml")}))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def reference(backend: LocalBackend) -> object:
    backend.info()
    files = Catalog(MODELS).resolve(DEFAULT_MODEL)
    assert files.gguf is not None
    return model_of(files.folder, files.gguf)


def answer(backend: LocalBackend, history: list[Turn], count: int) -> Answer:
    *_, last = backend.answer(history, Options(max_tokens=count, temperature=0, repetition_penalty=1))
    assert isinstance(last, Done)
    return last.answer


def check(backend: LocalBackend, reference: object, questions: list[str], count: int) -> None:
    """Greedy answers with reuse across turns against `generate(do_sample=False)` on the same prompt."""
    history: list[Turn] = []
    for number, question in enumerate(questions):
        history = [] if number % 5 == 0 else history
        history.append(Turn(Role.USER, question))
        said = answer(backend, history, count)
        prompt = torch.tensor([said.prompt])
        with torch.inference_mode():
            out = reference.generate(  # type: ignore[attr-defined]
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count
            )
        expected = [token for token in out[0, prompt.shape[1] :].tolist() if token not in (0, 2)]
        assert list(said.completion) == expected, question
        history.append(said.turn())


def test_greedy_answers_with_reuse_are_those_of_transformers(
    backend: LocalBackend, reference: object
) -> None:
    check(backend, reference, QUESTIONS[:2], 16)


@pytest.mark.slow
def test_twenty_prompts_of_sixty_four_tokens_are_those_of_transformers(
    backend: LocalBackend, reference: object
) -> None:
    check(backend, reference, QUESTIONS, 64)


def test_it_knows_the_capital_of_france(backend: LocalBackend) -> None:
    assert "Paris" in answer(backend, [Turn(Role.USER, "What is the capital of France?")], 16).text


def test_the_prompt_is_the_one_that_transformers_renders(backend: LocalBackend) -> None:
    from transformers import AutoTokenizer

    backend.info()
    tokenizer = AutoTokenizer.from_pretrained(Catalog(MODELS).path(DEFAULT_MODEL))
    messages = [
        {"role": "system", "content": "Be brief.\n\n  99"},
        {"role": "user", "content": "日本 😀 naïve\ttabs"},
    ]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    turns = [Turn(Role(message["role"]), message["content"]) for message in messages]
    assert list(answer(backend, turns, 1).prompt) == expected


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_guesses_change_an_answer_at_most_where_rounding_decides(tmp_path: Path, task: str) -> None:
    said: list[Answer] = []
    for draft in (0, 7):
        flags = {"model.draft": draft, "paths.cache": tmp_path, "paths.models": MODELS, "chat.save": False}
        backend = LocalBackend(load_config(flags, environ={"KVCHAT_CONFIG": str(tmp_path / "none.toml")}))
        said.append(answer(backend, [Turn(Role.USER, TASKS[task])], 96))
        loaded = backend._worker.wait().model.engine.loaded
        backend.close()
    assert said[1].timings.draft_n > 0
    if loaded.weights.mode is not WeightsMode.NATIVE:
        assert said[0].completion == said[1].completion
        return
    same = common_prefix(said[0].completion, said[1].completion)
    if same == len(said[0].completion):
        return
    held = [*said[0].prompt, *said[0].completion[:same]]
    alone, together = (_last_logits(loaded, held, num_last) for num_last in (1, 8))
    noise = float((alone - together).abs().max())
    first, second = alone.topk(2).values.tolist()
    assert first - second <= 2 * noise


def _last_logits(loaded: LoadedModel, tokens: list[int], num_last: int) -> torch.Tensor:
    """The last token's logits, computed with `num_last` tokens at once behind the others."""
    state = loaded.new_state()
    loaded.forward(tokens[:-num_last], state)
    return loaded.forward(tokens[-num_last:], state)
