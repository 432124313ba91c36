from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from kvchat.engine.costs import Costs
from kvchat.engine.foresight import Fixed, Measured, foresight_of
from kvchat.engine.request import Finish, Finished, Request, Token
from kvchat.engine.sampling import SamplingParams
from kvchat.engine.speculation import Guessed
from kvchat.models.loaded import LoadedModel
from tests.engine.talk import Talk
from tests.tiny import random_tokens, tiny_model

PROMPT = random_tokens(37)
NEVER = lambda: False  # noqa: E731


class Oracle:
    """Knows the answer, and guesses every `wrong_every`-th token of it wrong."""

    def __init__(self, whole: Sequence[int], wrong_every: int) -> None:
        self.whole = list(whole)
        self.wrong_every = wrong_every
        self.evidence = 1
        self.held = 0

    def begin(self, tokens: Sequence[int]) -> None:
        self.held = len(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        self.held += len(tokens)

    def draft(self, length: int) -> list[int]:
        places = range(self.held, min(self.held + length, len(self.whole)))
        return [self.whole[at] + (at % self.wrong_every == 0) for at in places]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_model()


def answer(engine: Talk, request: Request) -> tuple[list[int], Finished]:
    *tokens, finished = [e for e in engine.generate(request, NEVER) if isinstance(e, Token | Finished)]
    assert isinstance(finished, Finished)
    return [token.id for token in tokens if isinstance(token, Token)], finished


def guessing(loaded: LoadedModel, whole: Sequence[int], *, wrong_every: int = 5, length: int = 4) -> Talk:
    return Talk(loaded, guessing=(Oracle(whole, wrong_every), Fixed(length)))


def compared(loaded: LoadedModel, request: Request, **oracle: int) -> tuple[Talk, list[int]]:
    """The answers with and without guesses are the same, and so is what the engine holds then."""
    plain = Talk(loaded)
    expected, ended = answer(plain, request)
    long, _ = answer(Talk(loaded), replace(request, max_tokens=60, stop_ids=frozenset()))
    engine = guessing(loaded, [*request.prompt, *long], **oracle)
    said, finished = answer(engine, request)
    assert (said, finished.reason) == (expected, ended.reason)
    assert finished.num_generated == ended.num_generated
    assert engine.state.tokens == plain.state.tokens
    return engine, said


SAMPLINGS = {
    "greedy": SamplingParams(),
    "a seed": SamplingParams(temperature=1.2, seed=3),
    "top-k and top-p": SamplingParams(temperature=0.8, top_k=20, top_p=0.9, seed=5),
    "a repetition penalty": SamplingParams(repetition_penalty=1.4),
    "all of it": SamplingParams(temperature=1.0, min_p=0.02, repetition_penalty=1.2, seed=9),
}


@pytest.mark.parametrize("wrong_every", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_an_answer_is_the_same_with_guesses(
    loaded: LoadedModel, sampling: SamplingParams, wrong_every: int
) -> None:
    engine, said = compared(loaded, Request(PROMPT, sampling, 40), wrong_every=wrong_every)
    assert len(said) == 40
    assert engine.drafts.drafted > 20
    assert (engine.drafts.accepted > 0) is (wrong_every > 1)


@pytest.mark.parametrize("most", range(1, 12))
def test_a_length_limit_inside_a_draft_ends_the_answer_there(loaded: LoadedModel, most: int) -> None:
    _, said = compared(loaded, Request(PROMPT, max_tokens=most), wrong_every=1000)
    assert len(said) == most


@pytest.mark.parametrize("at", range(10))
def test_a_stop_id_inside_a_draft_ends_the_answer_there(loaded: LoadedModel, at: int) -> None:
    free, _ = answer(Talk(loaded), Request(PROMPT, max_tokens=12))
    stop = Request(PROMPT, max_tokens=12, stop_ids=frozenset({free[at]}))
    _, said = compared(loaded, stop, wrong_every=1000)
    assert said == free[: free.index(free[at])]


def test_the_end_of_the_context_inside_a_draft_ends_the_answer_there() -> None:
    _, said = compared(tiny_model(context=50), Request(PROMPT), wrong_every=1000)
    assert len(said) == 50 - len(PROMPT)


def stopped_after(count: int) -> tuple[list[int], Callable[[], bool]]:
    said: list[int] = []
    return said, lambda: len(said) >= count


@pytest.mark.parametrize("count", range(1, 12))
def test_a_cancel_inside_a_draft_leaves_what_was_said_and_no_more(loaded: LoadedModel, count: int) -> None:
    free, _ = answer(Talk(loaded), Request(PROMPT, max_tokens=20))
    engine = guessing(loaded, [*PROMPT, *free], wrong_every=1000)
    said, is_cancelled = stopped_after(count)
    for event in engine.generate(Request(PROMPT, max_tokens=20), is_cancelled):
        if isinstance(event, Token):
            said.append(event.id)
    assert isinstance(event, Finished)
    assert (said, event.reason) == (free[:count], Finish.CANCELLED)
    held = engine.state.tokens
    assert held == (PROMPT + said)[: len(held)]
    assert len(held) >= len(PROMPT + said) - 1, "the last token's own forward may have been ended"


@pytest.mark.parametrize("count", range(1, 12))
def test_a_stream_closed_inside_a_draft_leaves_what_was_said_and_no_more(
    loaded: LoadedModel, count: int
) -> None:
    free, _ = answer(Talk(loaded), Request(PROMPT, max_tokens=20))
    engine = guessing(loaded, [*PROMPT, *free], wrong_every=1000)
    said: list[int] = []
    stream = engine.generate(Request(PROMPT, max_tokens=20), NEVER)
    while len(said) < count:
        if isinstance(event := next(stream), Token):
            said.append(event.id)
    stream.close()  # type: ignore[attr-defined]
    held = engine.state.tokens
    assert held == (PROMPT + said)[: len(held)]
    again, _ = answer(engine, Request(PROMPT, max_tokens=20))
    assert again == free


@pytest.mark.parametrize("after", range(1, 22))
def test_an_exception_in_a_forward_with_guesses_leaves_a_state_that_still_answers_right(after: int) -> None:
    loaded = tiny_model()
    free, _ = answer(Talk(loaded), Request(PROMPT, max_tokens=20))
    engine = guessing(loaded, [*PROMPT, *free])
    left = [after]

    def fail(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("out of luck")

    handles = [layer.register_forward_hook(fail) for layer in loaded.model.model.layers]
    with pytest.raises(RuntimeError, match="out of luck"):
        answer(engine, Request(PROMPT, max_tokens=20))
    for handle in handles:
        handle.remove()
    held = engine.state.tokens
    assert held == (PROMPT + free)[: len(held)]
    assert answer(engine, Request(PROMPT, max_tokens=20))[0] == free


def test_the_next_turn_behind_an_answer_with_guesses_computes_its_message_alone(loaded: LoadedModel) -> None:
    engine, said = compared(loaded, Request(PROMPT, max_tokens=20))
    message = random_tokens(7, seed=4)
    _, finished = answer(engine, Request([*PROMPT, *said, *message], max_tokens=2))
    assert finished.prefilled == 7


def test_right_guesses_save_forwards(loaded: LoadedModel) -> None:
    free, _ = answer(Talk(loaded), Request(PROMPT, max_tokens=20))
    engine = guessing(loaded, [*PROMPT, *free], wrong_every=1000)
    forwards: list[int] = []
    handle = loaded.model.register_forward_hook(lambda *_: forwards.append(1))
    answer(engine, Request(PROMPT, max_tokens=20))
    handle.remove()
    assert engine.drafts == Guessed(15, 15)
    assert len(forwards) == 1 + 4 + 1, "the prompt, four times one token and four guesses, the last token"


@pytest.mark.parametrize("family", ["mamba", "lfm2"])
def test_a_state_that_can_not_be_cut_is_never_guessed_ahead(family: str) -> None:
    shapes = {"mamba": {"state_size": 8}, "lfm2": {"layer_types": ["conv", "full_attention", "conv"]}}
    engine, _ = compared(tiny_model(family, **shapes[family]), Request(PROMPT, max_tokens=8))
    assert engine.drafts == Guessed()


@pytest.mark.parametrize("family", ["gemma2", "mistral", "gpt_neox"])
def test_other_families_answer_the_same_with_guesses(family: str) -> None:
    shapes = {
        "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
        "mistral": {"sliding_window": 24},
        "gpt_neox": {},
    }
    engine, _ = compared(tiny_model(family, **shapes[family]), Request(PROMPT, max_tokens=30))
    assert engine.drafts.accepted > 0


def test_prompt_lookup_quotes_what_the_model_quotes(loaded: LoadedModel) -> None:
    free, _ = answer(Talk(loaded), Request(PROMPT, max_tokens=20))
    engine = Talk(loaded, draft=4)
    prompt = [*PROMPT, *free, *random_tokens(3, seed=8)]
    expected, _ = answer(Talk(loaded), Request(prompt, max_tokens=30))
    assert answer(engine, Request(prompt, max_tokens=30))[0] == expected


def test_the_setting_says_whether_and_how_far() -> None:
    assert foresight_of(0, Costs()) is None
    assert isinstance(foresight_of(None, Costs()), Measured)
    three = foresight_of(3, Costs())
    assert three is not None and three.length(1, 9) == 3
