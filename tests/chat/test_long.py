"""A conversation far past its context with a real engine: what measure_long counts, with a tiny model that can't sum up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvchat.backends.local import LocalBackend
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.config import Config
from tests.chat.measure_long import hold, report


def test_forty_turns_go_on_past_a_small_context_with_one_break_an_epoch(
    make_config: Callable[..., Config],
) -> None:
    config = make_config(
        model__context=512,
        sampling__temperature=0.0,
        sampling__max_tokens=3,
        sampling__repeat_stop=False,
        chat__when_full="auto",
    )
    with Session.from_config(LocalBackend(config), config) as session:
        rows = list(hold(session, 40))
        history, last = session.history, session.last
    assert not any(row.is_refused for row in rows)
    epochs = [row for row in rows if any("from here on" in line for line in row.notices)]
    assert len(epochs) >= 2
    assert [row.number for row in rows if row.is_broken] == [row.number for row in epochs]
    assert all(row.computed_tokens < 120 for row in rows[1:])  # an epoch's first prompt was computed before
    lines = list(report(rows, 40))
    assert lines[0] == "turns 40, in the tree 40, refused 0"
    again = Session(LocalBackend(config), store=Store(config.paths.data / "kvchat.db"))
    with again:
        again.resume()
        assert len(again.path) == 40
        assert again.history == history
    cold = replace(config, cache=replace(config.cache, mode="off"), chat=replace(config.chat, save=False))
    with Session.from_config(LocalBackend(cold), cold) as other:
        (*_, done) = other.backend.answer(history[:-1], other.chosen)
        assert last is not None
        assert done.answer.completion == last.completion  # type: ignore[union-attr]
