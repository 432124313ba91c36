from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kvchat.cache.base import CacheSettings
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.engine.foresight import Fixed
from kvchat.engine.request import Finished, Request, Token
from kvchat.models.kinds import ids_of, is_long
from kvchat.models.loaded import LoadedModel
from kvchat.models.stock import attention
from kvchat.models.stock.network import describe
from tests.engine.talk import Talk
from tests.families.shrink import random_tokens, tiny_random_model
from tests.families.sweep import TOLERANCE, Plain, plain_logits, watched
from tests.tiny import said

THRESHOLD = 64
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 2 * step for step in range(8)],
    "original_max_position_embeddings": THRESHOLD,
}


def long_rope_model() -> LoadedModel:
    model = tiny_random_model(
        "phi3",
        rope_parameters=LONG_ROPE,
        original_max_position_embeddings=THRESHOLD,
        max_position_embeddings=256,
    )
    attention.enable(model)
    return describe(model, name="long")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return long_rope_model()


@pytest.fixture(scope="module")
def plain(loaded: LoadedModel) -> Plain:
    """From scratch in one go, by a model that nobody has told anything."""
    return plain_logits(long_rope_model().model)


def test_the_keys_differ_beyond_the_threshold_or_nothing_here_is_tested(
    plain: Plain,
) -> None:
    tokens = random_tokens(THRESHOLD + 1)
    before = plain(tokens[:THRESHOLD])
    assert (plain(tokens)[:THRESHOLD] - before).abs().max() > 0.1


@pytest.mark.parametrize("sizes", [[100], [16] * 6, [63, 1, 1, 1], [60, 10], [1] * 70])
def test_however_a_conversation_crosses_the_threshold_its_logits_are_right(
    loaded: LoadedModel, plain: Plain, sizes: list[int]
) -> None:
    tokens, state, end = random_tokens(100), loaded.new_state(), 0
    for size in sizes:
        logits = loaded.forward(tokens[end : end + size], state)
        end += size
        assert (logits - plain(tokens[:end])[-1]).abs().max() < TOLERANCE
    assert ids_of(state.tokens) == tokens[:end]
    assert is_long(state.tokens[0]) is (end > THRESHOLD)


def say(engine: Talk, prompt: list[int], count: int = 6) -> tuple[list[int], Finished]:
    *told, finished = engine.generate(Request(prompt, max_tokens=count), lambda: False)
    assert isinstance(finished, Finished)
    engine.store()
    return prompt + said(engine.loaded, [event.id for event in told if isinstance(event, Token)]), finished


def test_a_conversation_crosses_the_threshold_in_an_answer_and_goes_back(
    loaded: LoadedModel, plain: Plain, tmp_path: Path
) -> None:
    engine = cached_engine(loaded, tmp_path)

    def greedy(prompt: list[int], count: int = 6) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(plain(tokens)[-1].argmax()))
        return tokens

    talk = random_tokens(THRESHOLD - 3)
    said, _ = say(engine, talk)
    assert said == greedy(talk)
    longer, told = say(engine, said + random_tokens(9, seed=1))
    assert longer == greedy(said + random_tokens(9, seed=1))
    assert told.prefilled == 9, "a long conversation is reused as one"
    again, told = say(engine, talk)
    assert again == greedy(talk)
    assert told.reuse.num_tokens <= THRESHOLD - 4
    back, told = say(engine, [*longer, 5])
    assert back == greedy([*longer, 5])


def cached_engine(loaded: LoadedModel, folder: Path) -> Talk:
    engine = Talk(loaded, chunk_tokens=16)
    engine.warm_up()
    engine.pace.prefill_s_per_token = engine.pace.step_s = 0.0
    assert engine.kv_layout
    settings = CacheSettings(ram_bytes=2**24, disk_bytes=2**26, disk_root=folder, block_size=8)
    engine.cache = PrefixCache(engine.kv_layout, b"both", settings)
    return engine


def test_blocks_of_one_regime_are_never_taken_for_the_other(
    loaded: LoadedModel, plain: Plain, tmp_path: Path
) -> None:
    tokens = random_tokens(90)
    for _ in range(2):
        engine = cached_engine(loaded, tmp_path)
        for length in (50, 90, 55, 85):
            said, told = say(engine, tokens[:length], 1)
            assert said[-1] == int(plain(tokens[:length])[-1].argmax())
        engine.close()
    assert told.reuse.num_tokens > 70, "and each is found again"


def test_code_that_keeps_its_frequencies_to_itself_stays_within_the_original_context() -> None:
    model = tiny_random_model(
        "phi3",
        rope_parameters=LONG_ROPE,
        original_max_position_embeddings=THRESHOLD,
        max_position_embeddings=256,
    )
    model.model.rotary_emb.rope_type = "its own"
    assert describe(model, name="own").context == THRESHOLD
    assert describe(long_rope_model().model, name="known").context == 256


def test_dynamic_rope_changes_nothing_within_the_context() -> None:
    stated = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    loaded = describe(tiny_random_model("llama", rope_parameters=stated), name="dynamic")
    tokens, state = random_tokens(loaded.context), loaded.new_state()
    expected = plain_logits(loaded.model)(tokens)[-1]
    loaded.forward(tokens[:100], state)
    loaded.forward(tokens[100:-1], state)
    assert (loaded.forward(tokens[-1:], state) - expected).abs().max() < TOLERANCE


class Oracle:
    """Guesses what will be said."""

    def __init__(self, whole: list[int]) -> None:
        self.whole = whole
        self.evidence, self.held = 1, 0

    def begin(self, tokens: Sequence[int]) -> None:
        self.held = len(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        self.held += len(tokens)

    def draft(self, length: int) -> list[int]:
        return self.whole[self.held : self.held + length]


def test_guesses_ahead_stop_at_the_threshold(loaded: LoadedModel) -> None:
    way = watched(loaded)
    prompt = random_tokens(THRESHOLD - 10)
    whole, _ = say(Talk(loaded), prompt, 20)
    engine = Talk(way, guessing=(Oracle(whole), Fixed(4)))
    assert say(engine, prompt, 20)[0] == whole
    assert engine.drafts.accepted > 10
    ends = [len(tokens) for tokens, _ in way.seen]
    assert THRESHOLD in ends, "no forward reaches across"
