"""What a call may use of the cache and leave in it is said by each call; the engine serves them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.backends.base import Answer, Done, Keeping, Options, Role, Turn
from kvchat.backends.calls import about
from kvchat.backends.local import LocalBackend
from kvchat.backends.wire import from_wire
from kvchat.config import Config
from tests.cache.test_third_tier import PlainFolder

HISTORY = [Turn(Role.SYSTEM, "be brief", pinned=True), Turn(Role.USER, "the quick brown fox " * 12)]
OTHER = [Turn(Role.USER, "something else")]


@pytest.fixture
def backend(make_config: Callable[..., Config]) -> Iterator[LocalBackend]:
    backend = LocalBackend(make_config())
    yield backend
    backend.close()


def answer(backend: LocalBackend, keeping: Keeping | None = None, history: list[Turn] = HISTORY) -> Answer:
    *_, done = backend.answer(history, Options(max_tokens=6, temperature=0.0), keeping)
    assert isinstance(done, Done)
    return done.answer


def stored_files(backend: LocalBackend) -> list[Path]:
    cache = backend._worker.wait().model.engine.cache
    assert cache is not None and cache.drain(10.0)
    return sorted(backend.config.paths.cache.rglob("*.kv"))


def held_outside(backend: LocalBackend) -> int:
    """Tokens of the history that come back once another conversation took the live place."""
    answer(backend, Keeping(saves=False), OTHER)
    report = answer(backend, Keeping("ro")).cache
    return sum(report.tiers.values())


@pytest.mark.parametrize("keeping", [Keeping(saves=False), Keeping("ro"), Keeping("off")])
def test_a_call_that_keeps_nothing_leaves_no_block(backend: LocalBackend, keeping: Keeping) -> None:
    before = stored_files(backend)
    said = answer(backend, keeping)
    list(backend.warm(HISTORY, keeping=keeping))
    list(backend.prepare([*HISTORY, said.turn()], Options(), keeping))
    assert stored_files(backend) == before
    assert held_outside(backend) == 0


def test_a_call_beside_it_keeps_what_it_computes(backend: LocalBackend) -> None:
    answer(backend, Keeping(saves=False))
    answer(backend)
    assert stored_files(backend)
    assert held_outside(backend) > 16


def test_calls_with_the_cache_off_compute_everything_beside_others_that_reuse(backend: LocalBackend) -> None:
    first = answer(backend)
    off = answer(backend, Keeping("off"))
    assert (off.completion, off.timings.cache_n) == (first.completion, 0)
    assert answer(backend).timings.cache_n == len(first.prompt) - 1
    assert backend.cache(HISTORY, keeping=Keeping("off")).mode == "off"
    assert backend.cache(HISTORY).mode == "rw"


def test_a_further_tier_is_no_place_for_what_is_not_saved(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    backend = LocalBackend(make_config(chat__save=False))
    (tmp_path / "attic").mkdir()
    with closing(backend):
        talk = backend._worker.wait()
        cache = talk.model.engine.cache
        assert cache is not None and talk.model.stores(Keeping(saves=False))
        cache.settings = replace(cache.settings, further=(PlainFolder(tmp_path / "attic"),))
        assert not talk.model.stores(Keeping(saves=False))


def test_an_engine_without_a_disk_keeps_unsaved_answers_in_memory(make_config: Callable[..., Config]) -> None:
    backend = LocalBackend(make_config(chat__save=False))
    answer(backend)
    assert held_outside(backend) > 16
    assert not backend.config.paths.cache.exists()
    backend.close()


def test_what_a_call_keeps_crosses_the_pipe_with_it() -> None:
    for keeping in (Keeping(), Keeping("ro", saves=False)):
        assert from_wire(Keeping, about("answer", HISTORY, Options(), keeping)["keeping"]) == keeping
