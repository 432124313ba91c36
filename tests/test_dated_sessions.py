"""A template that prints the date: yesterday's session still has yesterday's, and opens warm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvchat.backends.base import Answer
from kvchat.backends.local import LocalBackend
from kvchat.chat.opening import opening
from kvchat.config import Config

DATED = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}|{{ m.content }}{% endfor %}"


def reopened(config: Config, *messages: str, key: str | None = "latest") -> tuple[Answer, str]:
    """The answer to the last message in a session that another run of the program began, and its prompt's text."""
    with opening(config, key=key, is_fork=False, flags=()).session(LocalBackend(config)) as session:
        for message in messages:
            session.ask(message)
        assert session.last is not None
        decode = session.backend._worker.wait().model.tokenizer.decode  # type: ignore[attr-defined]
        return session.last, decode(session.last.prompt)


def test_a_session_has_the_date_of_its_beginning_and_opens_warm(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    template = tmp_path / "dated.jinja"
    template.write_text(DATED)
    config = make_config(model__chat_template=str(template), sampling__max_tokens=1)
    _, today = reopened(config, "the quick brown fox " * 10, key=None)
    began = 86400 * 365.25 * 30  # long ago
    store = opening(config, key="latest", is_fork=False, flags=()).store
    store.database.write(lambda db: db.execute("UPDATE exchange SET created = ?", (began,)))
    store.close()
    first, then = reopened(config, "and so on")
    assert then.startswith(("1999-12-31", "2000-01-01"))
    assert not first.cache.tiers.get("disk"), "the date was another"
    second, still = reopened(config, "jumps")
    assert still.startswith(then)
    assert second.cache.tiers["disk"] >= first.usage.total_tokens // 16 * 16
    _, new = reopened(config, "the quick brown fox " * 10, key=None)
    assert new == today
