"""Chats with models whose state can't be cut: reused where it was kept, over turns, retries and restarts, and never wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kvchat.backends.base import Answer, Done, Notice, Options, Role, Turn
from kvchat.backends.local import LocalBackend
from kvchat.config import Config
from kvchat.models.reuse import FAMILIES as DECLARED
from kvchat.models.reuse import SNAPSHOTS
from tests.engine.test_holding import FAMILIES
from tests.tiny import tiny_folder

MakeConfig = Callable[..., Config]
SYSTEM = Turn(Role.SYSTEM, "You are somebody who says little, and that in few words.")
HELLO = Turn(Role.USER, "Hello, what do you think of the quick brown fox?")
MORE = Turn(Role.USER, "And of the lazy dog?")


@pytest.fixture(scope="module", params=["falcon_h1", "mamba"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = request.param
    return tiny_folder(tmp_path_factory.mktemp("models") / family, family=family, **FAMILIES[family])


def said(backend: LocalBackend, *history: Turn, notices: list[str] | None = None) -> Answer:
    for event in backend.answer(history, Options(max_tokens=8)):
        if isinstance(event, Notice) and notices is not None:
            notices.append(event.message)
        if isinstance(event, Done):
            return event.answer
    raise AssertionError("no answer")


def opened(config: Config) -> closing[LocalBackend]:
    """A backend to which going on always seems faster than computing anew."""
    backend = LocalBackend(config)
    pace: Any = backend._worker.wait().model.engine.pace
    pace.measure = lambda num_tokens, seconds: None
    pace.prefill_s_per_token = pace.step_s = 1.0
    return closing(backend)


def test_a_conversation_is_the_same_as_without_a_cache_and_reuses_what_was_kept(
    folder: Path, make_config: MakeConfig
) -> None:
    config = make_config(model__name=str(folder))
    with opened(make_config(model__name=str(folder), cache__mode="off")) as cold:
        expected = said(cold, SYSTEM, HELLO)
        follow_up = [SYSTEM, HELLO, expected.turn(), MORE]
        expected_more = said(cold, *follow_up)
    with opened(config) as backend:
        first = said(backend, SYSTEM, HELLO)
        assert first.completion == expected.completion
        second = said(backend, *follow_up)
        assert second.completion == expected_more.completion
        assert second.cache.live == len(first.prompt) + 8
        again = said(backend, SYSTEM, HELLO)
        assert again.completion == expected.completion
        assert again.usage.cached_tokens == len(first.prompt) - 1
        view = backend.cache(follow_up)
        assert view.cached_tokens == len(second.prompt) - 1
    with opened(config) as later:
        resumed = said(
            later, *follow_up, Turn(Role.ASSISTANT, "x", "", second.completion, second.tokenizer), MORE
        )
        assert resumed.cache.tiers["disk"] == len(second.prompt) + 8
        sample = later.verify(8)
        assert sample.runs and sample.wrong == ()
        assert all(run.difference < 1e-4 for run in sample.runs)


def test_the_report_says_that_the_state_was_kept_at_some_points_only(
    folder: Path, make_config: MakeConfig
) -> None:
    with opened(make_config(model__name=str(folder))) as backend:
        said(backend, SYSTEM, HELLO)
        other = said(backend, SYSTEM, Turn(Role.USER, HELLO.text[:-4] + "cat?"))
        assert "state was kept at token" in other.cache.reason
        info = backend.info()
        assert info.reuse == "snapshots"
        assert info.verdict.startswith("checked")


def test_a_model_that_fails_its_rule_says_so_once_and_still_answers_right(
    folder: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    if folder.name != "mamba":
        pytest.skip("only a chunk would be wrong")
    monkeypatch.setattr("kvchat.models.reuse.FAMILIES", dict(DECLARED) | {"mamba": SNAPSHOTS})
    with opened(make_config(model__name=str(folder), cache__mode="off")) as cold:
        expected = said(cold, SYSTEM, HELLO)
    for _ in range(2):
        notices: list[str] = []
        with opened(make_config(model__name=str(folder))) as backend:
            assert said(backend, SYSTEM, HELLO, notices=notices).completion == expected.completion
            assert backend.info().continuation == "one_token"
        assert len([notice for notice in notices if "wrong" in notice]) == 1
