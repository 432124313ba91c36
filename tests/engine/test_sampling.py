from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    ExponentialDecayLengthPenalty,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kvchat.engine.sampling import (
    NUCLEUS_TOKENS,
    Length,
    NoNumbersError,
    Sampler,
    SamplingParams,
    chain,
    drawn,
    favour,
    keep_top_p,
    penalise_repetition,
)

VOCABULARY = 1000


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4


CASES = [
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.0, top_k=40),
    SamplingParams(temperature=1.3, top_p=0.9),
    SamplingParams(temperature=1.0, min_p=0.05),
    SamplingParams(temperature=0.6, top_k=20, top_p=0.95, min_p=0.02),
    SamplingParams(temperature=2.0, top_k=1),
    SamplingParams(temperature=1.0, top_p=0.0),
    SamplingParams(temperature=1.0, top_k=5000),
    SamplingParams(temperature=0.9, top_k=50, top_p=0.5, min_p=0.3, repetition_penalty=1.3),
]


def transformers_logits(params: SamplingParams, prompt: list[int], logits: torch.Tensor) -> torch.Tensor:
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    return steps(torch.tensor([prompt]), logits[None].clone())[0]


@pytest.mark.parametrize("params", CASES, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_the_chain_equals_the_processors_of_transformers(params: SamplingParams, seed: int) -> None:
    prompt = [3, 5, 3, 999, 17]
    logits = logits_of(seed)
    expected = transformers_logits(params, prompt, logits)
    ours = logits
    if params.repetition_penalty != 1.0:
        ours = penalise_repetition(ours, torch.tensor(sorted(set(prompt))), params.repetition_penalty)
    for function in chain(params):
        ours = function(ours)
    assert torch.equal(torch.isfinite(ours), torch.isfinite(expected))
    assert torch.allclose(ours.softmax(-1), expected.softmax(-1), atol=1e-6)


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = logits_of(1)
    assert Sampler(SamplingParams(), [], torch.device("cpu")).choose(logits) == int(logits.argmax())


def test_the_repetition_penalty_covers_what_was_generated() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=100.0), [], torch.device("cpu"))
    logits = logits_of(2).abs()
    chosen = [sampler.choose(logits) for _ in range(20)]
    assert len(set(chosen)) == 20


def test_what_ends_an_answer_is_no_repetition() -> None:
    logits = torch.tensor([3.0, 2.9, 1.0])
    ended_before = SamplingParams(repetition_penalty=2.0, ends=frozenset({0}))
    assert Sampler(ended_before, [0, 1, 2], torch.device("cpu")).choose(logits) == 0
    assert Sampler(SamplingParams(repetition_penalty=2.0), [0, 2], torch.device("cpu")).choose(logits) == 1


@pytest.mark.parametrize(("start", "factor"), [(0, 1.5), (3, 1.05), (5, 0.9), (30, 2.0)])
def test_the_ends_grow_likelier_as_with_the_processor_of_transformers(start: int, factor: float) -> None:
    ends = frozenset({2, 7})
    theirs = ExponentialDecayLengthPenalty((start, factor), torch.tensor(sorted(ends)), 1)
    params = SamplingParams(ends=ends, length=Length(start, factor))
    sampler, tokens = Sampler(params, [4], torch.device("cpu")), [4]
    for step in range(25):
        logits = logits_of(100 + step)[:40]
        expected = theirs(torch.tensor([tokens]), logits[None].clone())[0]
        assert sampler.choose(logits) == int(expected.argmax())
        growth = params.length.growth(len(tokens) - 1)
        assert torch.allclose(favour(logits, torch.tensor(sorted(ends)), growth), expected, rtol=1e-4)
        tokens.append(int(expected.argmax()))


def test_an_end_that_grows_for_ever_stays_a_number() -> None:
    sampler = Sampler(
        SamplingParams(ends=frozenset({1, 500}), length=Length(0, 1000.0)), [], torch.device("cpu")
    )
    assert [sampler.choose(torch.tensor([5.0, 1.0, 0.0])) for _ in range(300)][-1] == 1


def test_the_same_seed_draws_the_same_tokens_and_no_seed_draws_others() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=2.0, seed=seed), [], torch.device("cpu"))
        return [sampler.choose(logits_of(3)) for _ in range(30)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_what_is_ruled_out_is_never_drawn() -> None:
    sampler = Sampler(SamplingParams(temperature=5.0, top_k=3, seed=0), [], torch.device("cpu"))
    logits = logits_of(4)
    allowed = set(logits.topk(3).indices.tolist())
    assert {sampler.choose(logits) for _ in range(200)} == allowed


@pytest.mark.parametrize("temperature", [1e-40, 1e-12, 1e-6])
def test_a_temperature_next_to_zero_takes_the_likeliest_token(temperature: float) -> None:
    logits = logits_of(6)
    assert Sampler(SamplingParams(temperature), [], torch.device("cpu")).choose(logits) == int(
        logits.argmax()
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_scores_that_are_no_numbers_are_no_choice(temperature: float, wrong: float) -> None:
    sampler = Sampler(SamplingParams(temperature), [], torch.device("cpu"))
    for logits in (logits_of(7).index_fill(0, torch.tensor([500]), wrong), torch.full((9,), -torch.inf)):
        with pytest.raises(NoNumbersError):
            sampler.choose(logits)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), st.integers(0, 2**20 - 1))
def test_a_lot_draws_the_token_at_which_the_shares_reach_it(weights: list[int], number: int) -> None:
    lot = number / 2**20
    token = drawn(torch.tensor(weights, dtype=torch.float32), lot)
    assert weights[token] > 0
    assert sum(weights[:token]) <= lot * sum(weights) < sum(weights[: token + 1])


def test_a_set_of_many_likeliest_tokens_is_the_one_of_few() -> None:
    flat = torch.randn(4 * NUCLEUS_TOKENS, generator=torch.Generator().manual_seed(3))
    for p in (0.05, 0.2, 0.9, 0.9999):
        kept = torch.isfinite(keep_top_p(flat, p))
        shares = flat.softmax(-1)
        assert float(shares[kept].sum()) >= p - 1e-5
        assert float(shares[kept].sum() - shares[kept].min()) < p + 1e-5
        assert float(shares[kept].min()) >= float(shares[~kept].max())
