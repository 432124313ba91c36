"""Stored KV against a cold computation of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch

from kvchat.backends.base import Answer, Done, Options, Role, Turn
from kvchat.backends.inspection import VerifySample
from kvchat.backends.local import LocalBackend
from kvchat.config import Config
from tests.tiny import random_tokens

MakeConfig = Callable[..., Config]


def said(backend: LocalBackend, *history: Turn) -> Answer:
    *_, last = backend.answer(history, Options(max_tokens=8))
    assert isinstance(last, Done)
    return last.answer


def verified(config: Config, sample: int = 4) -> VerifySample:
    """What a process finds that comes later."""
    with closing(LocalBackend(config)) as backend:
        return backend.verify(sample)


def fill(config: Config) -> None:
    with closing(LocalBackend(config)) as backend:
        said(backend, Turn(Role.USER, "a message of quite some length, so that blocks are full" * 2))


@pytest.mark.parametrize("other", [{}, {"model__dtype": "bfloat16"}])
def test_what_an_answer_stored_is_to_the_bit_the_kv_of_its_tokens(
    make_config: MakeConfig, other: dict[str, Any]
) -> None:
    fill(make_config(**other))
    sample = verified(make_config(**other))
    assert sample.runs
    assert sample.wrong == ()
    assert sample.bound == 0.0
    assert all(run.difference == 0.0 and run.same_top for run in sample.runs)


def test_sound_files_with_the_kv_of_other_tokens_are_found_out(make_config: MakeConfig) -> None:
    config = make_config()
    with closing(LocalBackend(config)) as backend:
        said(backend, Turn(Role.USER, "a message of quite some length, so that blocks are full"))
        talk = backend._worker.wait()
        cache, planes = talk.model.engine.cache, talk.sequence.state.planes
        assert cache
        with torch.inference_mode():
            cache.commit(random_tokens(64), planes, 64)
    sample = verified(config)
    assert len(sample.wrong) == 1
    assert sample.wrong[0].tokens == 64
    assert sample.wrong[0].difference > 0.01


def test_where_blocks_are_encoded_with_loss_only_a_clear_best_token_counts(make_config: MakeConfig) -> None:
    fill(make_config(cache__codec="int8"))
    sample = verified(make_config(cache__codec="int8"))
    assert sample.bound is None
    assert sample.runs
    assert sample.wrong == ()
    assert all(run.difference > 0 for run in sample.runs)


def test_entries_of_another_dtype_are_not_this_models(make_config: MakeConfig) -> None:
    fill(make_config())
    assert verified(make_config(model__dtype="bfloat16")).runs == ()
    assert verified(make_config(cache__mode="off")).runs == ()


def test_the_sample_is_no_larger_than_asked(make_config: MakeConfig) -> None:
    config = make_config()
    with closing(LocalBackend(config)) as backend:
        for n in range(3):
            said(backend, Turn(Role.USER, f"{n} a message of quite some length, so that blocks are full"))
    assert len(verified(config, 2).runs) == 2


def test_verifying_leaves_the_live_conversation_as_it_is(make_config: MakeConfig) -> None:
    question = Turn(Role.USER, "a message of quite some length, so that blocks are full")
    with closing(LocalBackend(make_config())) as backend:
        first = said(backend, question)
        backend.verify(4)
        second = said(backend, question, first.turn(), Turn(Role.USER, "and?"))
    assert second.cache.live >= first.usage.prompt_tokens + len(first.completion) - 1
