"""Where a run's conversation begins: at nothing, or at a saved session with its own model and system prompt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from kvchat.backends.base import Backend
from kvchat.chat.session import Session
from kvchat.chat.store import LATEST, SessionRow, Store
from kvchat.chat.tree import Preset
from kvchat.config import Config
from kvchat.errors import UsageError


@dataclass(frozen=True, slots=True)
class Opening:
    """The settings to start a backend with, and the session that it then answers, with the saved prompt in place."""

    config: Config
    store: Store
    row: SessionRow | None = None
    is_fork: bool = False
    preset: Preset | None = None
    is_oneshot: bool = False

    def session(self, backend: Backend) -> Session:
        """The session, with the backend that was started from `config`."""
        session = Session.from_config(backend, self.config, store=self.store)
        if self.row is not None:
            session.resume(self.row.id)
        session.mark(is_oneshot=self.is_oneshot and (self.row is None or self.row.is_oneshot or self.is_fork))
        session.set_system(self.config.chat.system, pinned=self.config.chat.pin, preset=self.preset)
        if self.is_fork:
            session.fork()
        return session


def opening(
    config: Config,
    *,
    key: str | None,
    is_fork: bool,
    flags: Collection[str],
    preset: Preset | None = None,
    is_oneshot: bool = False,
) -> Opening:
    """How to begin: with the session `key` (its name or id; empty for the latest), or a new one for None.

    A session keeps its model and its system prompt, unless `flags` (settings given on the command line) have
    another. What is only asked, `is_oneshot`, is not the latest for a dialogue. Raises UsageError if there is no such
    session.
    """
    store = Store.from_config(config)
    if key is None:
        if is_fork:
            raise UsageError("--fork needs a session to branch from", "give -c or -r with it")
        return Opening(config, store, preset=preset, is_oneshot=is_oneshot)
    row = store.session(key or LATEST, oneshots=is_oneshot)
    if row.model and row.model != config.model.name and "model.name" not in flags:
        trusts = config.model.trust_remote_code and "model.trust_remote_code" in flags
        model = replace(config.model, name=row.model, adapter=None, trust_remote_code=trusts)
        config = replace(config, model=model)
    if "chat.system" not in flags:
        config = replace(config, chat=replace(config.chat, system=row.system))
    return Opening(config, store, row, is_fork, preset, is_oneshot)
