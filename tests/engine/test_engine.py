from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kvchat.engine.request import Finish, Finished, Progress, Request, Token
from kvchat.engine.sampling import SamplingParams
from tests.engine.talk import Talk
from tests.tiny import random_tokens, said, stock_logits, tiny_model


def run(engine: Talk, prompt: list[int], count: int = 8, **options: object) -> tuple[list[int], Finished]:
    request = Request(prompt, max_tokens=count, **options)  # type: ignore[arg-type]
    events = list(engine.generate(request, lambda: False))
    assert isinstance(events[-1], Finished)
    return said(engine.loaded, [event.id for event in events if isinstance(event, Token)]), events[-1]


def from_scratch(engine: Talk, prompt: list[int], count: int = 8) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(stock_logits(engine.loaded, tokens).argmax()))
    return said(engine.loaded, tokens[len(prompt) :])


FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": 20},
    "gpt_neox": {},
    "olmo2": {},
    "mamba": {"state_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_three_turns_with_reuse_choose_the_tokens_of_a_computation_from_scratch(family: str) -> None:
    engine = Talk(tiny_model(family, **FAMILIES[family]), chunk_tokens=16)
    prompt = random_tokens(37)
    for turn in range(3):
        generated, finished = run(engine, prompt)
        assert generated == from_scratch(engine, prompt)
        if turn and engine.state.is_divisible:
            assert finished.prefilled == 7, "only the new message is computed"
        prompt = prompt + generated + random_tokens(7, seed=turn + 1)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("mamba", "lfm2")])
def test_logits_over_reused_and_split_prefixes_equal_those_from_scratch(family: str) -> None:
    loaded = tiny_model(family, **FAMILIES[family])
    tokens = random_tokens(90)
    expected = stock_logits(loaded, tokens)
    for split in ([90], [1] * 90, [16, 30, 1, 43], [89, 1], [15, 1, 16, 1, 57]):
        state = loaded.new_state()
        start = 0
        for size in split:
            logits = loaded.forward(tokens[start : start + size], state)
            start += size
        assert (logits - expected).abs().max() < 1e-4
    state.keep(50)
    assert (loaded.forward(tokens[50:], state) - expected).abs().max() < 1e-4


def test_one_altered_token_in_the_kept_prefix_changes_the_logits() -> None:
    loaded = tiny_model()
    tokens = random_tokens(40)
    expected = stock_logits(loaded, tokens)
    state = loaded.new_state()
    loaded.forward([tokens[0] + 1, *tokens[1:30]], state)
    assert (loaded.forward(tokens[30:], state) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33])
def test_a_prompt_that_is_held_whole_still_computes_its_last_token(length: int) -> None:
    engine = Talk(tiny_model(), chunk_tokens=16)
    prompt = random_tokens(length)
    first, _ = run(engine, prompt)
    again, finished = run(engine, prompt)
    assert again == first
    assert finished.prefilled == 1
    assert finished.reuse.live == length - 1


def test_a_diverging_prompt_keeps_the_common_prefix_to_the_token() -> None:
    engine = Talk(tiny_model())
    prompt = random_tokens(50)
    run(engine, prompt)
    other = prompt[:29] + random_tokens(20, seed=9)
    generated, finished = run(engine, other)
    assert finished.reuse.live == 29
    assert generated == from_scratch(engine, other)


def test_without_reuse_every_token_is_computed_again() -> None:
    engine = Talk(tiny_model())
    prompt = random_tokens(50)
    first, _ = run(engine, prompt)
    again, finished = run(engine, prompt, reuse=False)
    assert (again, finished.prefilled) == (first, 50)


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it() -> None:
    engine = Talk(tiny_model())
    prompt = random_tokens(20)
    free, _ = run(engine, prompt)
    stopped, finished = run(engine, prompt, stop_ids=frozenset({free[3]}))
    assert stopped == free[: free.index(free[3])]
    assert finished.reason is Finish.STOP
    assert engine.state.tokens == prompt + stopped


def test_the_context_ends_an_answer_as_a_length_limit_does() -> None:
    engine = Talk(tiny_model(context=40))
    generated, finished = run(engine, random_tokens(30), count=100)
    assert (len(generated), finished.reason) == (10, Finish.LENGTH)


def test_a_cancelled_prefill_keeps_its_chunks_and_resumes_behind_them() -> None:
    engine = Talk(tiny_model(), chunk_tokens=16)
    prompt = random_tokens(100)
    calls = iter([False, False, True])
    events = list(engine.generate(Request(prompt, max_tokens=4), lambda: next(calls)))
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].prefilled) == (Finish.CANCELLED, 32)
    generated, finished = run(engine, prompt)
    assert finished.reuse.live == 32
    assert generated == from_scratch(engine, prompt)


def test_a_cancelled_answer_leaves_the_kv_of_exactly_what_was_said() -> None:
    engine = Talk(tiny_model())
    prompt = random_tokens(20)
    full = from_scratch(engine, prompt, 12)
    said: list[int] = []
    for event in engine.generate(Request(prompt, max_tokens=50), lambda: len(said) >= 5):
        if isinstance(event, Token):
            said.append(event.id)
    assert said == full[:5]
    generated, finished = run(engine, prompt + said)
    assert finished.prefilled == 1
    assert generated[:7] == full[5:12]


class Breaks:
    """Fails at the `after`-th layer call from now on, in the middle of a forward."""

    def __init__(self, engine: Talk, after: int) -> None:
        self.left = after
        layers = engine.loaded.model.model.layers
        self.handles = [layer.register_forward_hook(self) for layer in layers]

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("out of luck")

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("after", range(1, 31))
def test_an_exception_anywhere_leaves_a_state_that_still_answers_right(after: int) -> None:
    engine = Talk(tiny_model(), chunk_tokens=8)
    prompt = random_tokens(40)
    expected = from_scratch(engine, prompt)
    fault = Breaks(engine, after)
    with pytest.raises(RuntimeError, match="out of luck"):
        run(engine, prompt)
    fault.remove()
    held = engine.state.tokens
    assert held == (prompt + expected)[: len(held)]
    assert run(engine, prompt)[0] == expected


def test_closing_the_stream_in_the_middle_leaves_a_state_that_still_answers_right() -> None:
    engine = Talk(tiny_model(), chunk_tokens=8)
    prompt = random_tokens(40)
    expected = from_scratch(engine, prompt)
    for stop_after in range(1, 12):
        stream = engine.generate(Request(prompt, max_tokens=8), lambda: False)
        take(stream, stop_after)
        stream.close()  # type: ignore[attr-defined]
        assert run(engine, prompt)[0] == expected


def take(stream: Iterator[object], count: int) -> None:
    for _ in range(count):
        next(stream)


def test_progress_tells_what_is_cached_and_ends_at_the_total() -> None:
    engine = Talk(tiny_model(), chunk_tokens=16)
    prompt = random_tokens(50)
    run(engine, prompt[:20])
    steps = [
        e for e in engine.generate(Request(prompt, max_tokens=1), lambda: False) if isinstance(e, Progress)
    ]
    assert [(step.done, step.total) for step in steps] == [(0, 30), (16, 30), (30, 30)]
    assert steps[0].reuse.live == 20


def test_the_arena_grows_in_steps_where_it_cannot_be_reserved() -> None:
    narrow = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    loaded = tiny_model(max_position_embeddings=16384, **narrow)
    state = loaded.new_state()
    state.allocated = 0  # type: ignore[attr-defined]  # as on a GPU
    tokens = random_tokens(4200)
    loaded.forward(tokens[:4000], state)
    assert state.planes[0].shape[1] == 4096
    logits = loaded.forward(tokens[4000:], state)
    assert state.planes[0].shape[1] == 8192
    assert (logits - stock_logits(loaded, tokens)).abs().max() < 1e-4


def test_a_seed_repeats_a_sampled_answer() -> None:
    engine = Talk(tiny_model())
    prompt = random_tokens(20)
    drawn = [run(engine, prompt, sampling=SamplingParams(temperature=1.5, seed=s))[0] for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_warming_up_leaves_nothing_behind() -> None:
    engine = Talk(tiny_model())
    engine.warm_up()
    assert engine.state.tokens == []
    prompt = random_tokens(20)
    assert run(engine, prompt)[0] == from_scratch(engine, prompt)
    assert torch.is_inference_mode_enabled() is False
