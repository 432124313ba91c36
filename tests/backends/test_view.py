"""A conversation as the cache sees it: its rows and totals, and what looking costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvchat.backends.base import (
    Options,
    Role,
    Turn,
)
from kvchat.backends.local import LocalBackend
from kvchat.models.text.template import Message
from tests.backends.test_local import answer, user


def test_the_cache_view_has_a_row_a_message_that_adds_up(backend: LocalBackend) -> None:
    history = [Turn(Role.SYSTEM, "the quick brown fox"), user("hello")]
    said = answer(backend, history)
    history.append(said.turn())
    view = backend.cache(history)
    assert [row.role for row in view.rows] == [Role.SYSTEM, Role.USER, Role.ASSISTANT]
    assert sum(row.tokens for row in view.rows) == view.prompt_tokens == said.usage.total_tokens
    assert sum(row.live for row in view.rows) == view.cached_tokens == said.usage.total_tokens
    assert sum(row.tiers["ram"] for row in view.rows) == said.usage.total_tokens // 16 * 16
    assert view.turn.asked_tokens == said.usage.prompt_tokens
    assert view.arena_used == said.usage.total_tokens * backend.info().kv_bytes_per_token
    other = backend.cache([user("something else")])
    assert other.cached_tokens < other.prompt_tokens
    assert other.compute_s > 0
    assert backend.cache([]).rows == ()


def counted_renderings(backend: LocalBackend, history: Sequence[Turn], *, has_rows: bool) -> int:
    """How often a template is rendered for a look at the cache."""
    program, count = backend._worker.wait().model.template._program, 0
    render = program.render

    def counting(*args: Any, **names: Any) -> str:
        nonlocal count
        count += 1
        return render(*args, **names)

    program.render = counting  # type: ignore[method-assign]
    backend.cache(history, has_rows=has_rows)
    program.render = render  # type: ignore[method-assign]
    return count


def test_a_look_at_the_cache_renders_a_long_conversation_as_often_as_a_short_one(
    backend: LocalBackend,
) -> None:
    said = [user("hello"), Turn(Role.ASSISTANT, "the lazy dog")]
    for has_rows in (True, False):
        counts = [
            counted_renderings(
                backend, [Turn(Role.SYSTEM, "be brief"), *said * n, user("so")], has_rows=has_rows
            )
            for n in (1, 12)
        ]
        assert counts[1] <= counts[0] <= 6 * has_rows + 1


def test_rows_end_where_their_messages_end(backend: LocalBackend) -> None:
    history = [Turn(Role.SYSTEM, "be brief")]
    for number in range(4):
        history += [user(f"a {number}"), Turn(Role.ASSISTANT, f"the lazy dog {number}\n")]
    history.append(user("user"))
    decode, template = backend._worker.wait().model.tokenizer.decode, backend._worker.wait().model.template
    ids = template.prompt([Message(turn.role.value, turn.text) for turn in history])
    start = 0
    for row in backend.cache(history).rows[:-1]:
        said = decode(ids[start : start + row.tokens])
        assert said.endswith(row.text.strip()) or row.role is Role.SYSTEM, said
        start += row.tokens


def test_without_rows_the_totals_are_the_same(backend: LocalBackend) -> None:
    history = [user("hello"), answer(backend, [user("hello")]).turn(), user("and")]
    with_rows, without = (backend.cache(history, has_rows=has_rows) for has_rows in (True, False))
    assert len(with_rows.rows) == 3
    assert without.rows == ()
    assert (with_rows.prompt_tokens, with_rows.cached_tokens) == (
        without.prompt_tokens,
        without.cached_tokens,
    )


def test_a_pinned_prompt_is_shown_as_pinned(backend: LocalBackend) -> None:
    text = "the quick brown fox " * 20
    history = [Turn(Role.SYSTEM, text), user("hello")]
    answer(backend, history)
    assert backend.cache(history).rows[0].pinned == 0
    history[0] = Turn(Role.SYSTEM, text, pinned=True)
    ways: tuple[Callable[[], object], ...] = (
        lambda: list(backend.warm(history[:1])),
        lambda: list(backend.prepare(history[:1], Options())),
        lambda: answer(backend, history),
    )
    for number, way in enumerate(ways):
        history[0] = Turn(Role.SYSTEM, f"{number} {text}", pinned=True)
        way()
        rows = backend.cache(history).rows
        assert rows[0].pinned >= 16
        assert rows[1].pinned == 0
