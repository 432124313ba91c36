"""The law: what is computed of a conversation has the same bits, whosever tokens are computed with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvchat.models.company import Part
from kvchat.models.kinds import as_generated
from kvchat.models.kv_state import KVState
from kvchat.models.loaded import LoadedModel
from tests.models.lean.test_network import KINDS, WIDE, folder_of, loaded_from
from tests.models.test_exactness import MODES
from tests.tiny import random_tokens, tiny_model

STARTS = (3, 70, 140, 400)
GUESSED = {0: 1, 1: 3, 2: 1, 3: 2}
"""How many tokens each conversation has computed in a forward."""


@pytest.fixture(scope="module", params=MODES, ids=" ".join)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    dtype, weights = request.param
    folder = folder_of("llama", tmp_path_factory.mktemp("company") / "model", **WIDE)
    return loaded_from(folder, dtype, weights=weights)


def begun(loaded: LoadedModel, number: int) -> KVState:
    """A conversation that is under way."""
    state = loaded.new_state()
    loaded.forward(random_tokens(STARTS[number], seed=number), state)
    return state


def steps(number: int, count: int) -> list[list[int]]:
    """What one conversation has computed, forward by forward."""
    size = GUESSED[number]
    tokens = as_generated(random_tokens(size * count, seed=10 + number))
    return [tokens[start : start + size] for start in range(0, size * count, size)]


def alone(loaded: LoadedModel, number: int, count: int) -> tuple[list[torch.Tensor], KVState]:
    state = begun(loaded, number)
    return [loaded.logits(tokens, state, len(tokens)) for tokens in steps(number, count)], state


def check(loaded: LoadedModel, company: list[set[int]]) -> None:
    """Compute the conversations of each set together, one set after the other, and compare with each alone."""
    numbers = sorted(set().union(*company))
    states = {number: begun(loaded, number) for number in numbers}
    left = {number: iter(steps(number, len(company))) for number in numbers}
    found: dict[int, list[torch.Tensor]] = {number: [] for number in numbers}
    for some in company:
        parts = [Part(next(left[number]), states[number]) for number in sorted(some)]
        for number, logits in zip(sorted(some), loaded.logits_together(parts), strict=True):
            found[number].append(logits)
    for number in numbers:
        expected, state = alone(loaded, number, len(found[number]))
        assert all(torch.equal(*pair) for pair in zip(found[number], expected, strict=True))
        assert states[number].tokens == state.tokens
        held = len(state.tokens)
        planes = zip(states[number].planes, state.planes, strict=True)
        assert all(torch.equal(mine[:, :held], other[:, :held]) for mine, other in planes)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(company=st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=5))
def test_conversations_computed_together_have_the_bits_of_each_alone(
    loaded: LoadedModel, company: list[set[int]]
) -> None:
    check(loaded, company)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama"])
def test_every_family_of_ours_is_computed_together(kind: str, tmp_path: Path) -> None:
    loaded = loaded_from(folder_of(kind, tmp_path / "model"))
    check(loaded, [{0, 1, 2, 3}, {1, 3}, {0}, {0, 1, 2, 3}])


def test_a_forward_that_fails_leaves_every_conversation_as_it_was(loaded: LoadedModel) -> None:
    states = [begun(loaded, number) for number in range(2)]
    tokens = as_generated([5])
    with pytest.raises(IndexError):
        loaded.logits_together([Part(tokens, states[0]), Part(as_generated([10_000]), states[1])])
    assert [len(state.tokens) for state in states] == [*STARTS[:2]]
    again = loaded.logits_together([Part(tokens, state) for state in states])
    assert torch.equal(again[1], loaded.logits(tokens, begun(loaded, 1), 1))


def test_models_of_transformers_own_are_computed_one_after_the_other() -> None:
    assert tiny_model().num_together == 0
