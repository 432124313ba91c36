"""What the commands show of models that other machines serve. Loads no torch; asks with a bound on each wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kvchat.errors import KvchatError, UsageError
from kvchat.remotes import RemoteConfig, Target, target_of

LIST_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """One model of a remote: the name that -m takes, its context in tokens (0 if unknown), and where it is."""

    name: str
    context: int
    url: str
    kind: str = ""
    error: str = ""


def remote_models(
    remotes: Mapping[str, RemoteConfig], only: str | None = None, *, timeout_s: float = LIST_TIMEOUT_S
) -> list[RemoteModel]:
    """What all remotes serve, or `only` one (its name or URL); of one that can't be asked a row that says why.

    Raises UsageError for a remote that there is none of, KvchatError where the only one can't be asked.
    """
    targets = [Target(name, remote) for name, remote in remotes.items()]
    if only is not None:
        target = target_of(only, remotes)
        if target is None:
            known = (
                f"one of {', '.join(remotes)}"
                if remotes
                else "its URL, or write [remote.NAME] in config.toml"
            )
            raise UsageError(f"no remote is called {only[:60]!r}", f"give {known}")
        return _models_of(target, timeout_s)
    if not targets:
        return []
    with ThreadPoolExecutor(max_workers=min(8, len(targets))) as pool:
        return [row for rows in pool.map(lambda target: _or_why(target, timeout_s), targets) for row in rows]


def _or_why(target: Target, timeout_s: float) -> Sequence[RemoteModel]:
    try:
        return _models_of(target, timeout_s)
    except KvchatError as error:
        return [RemoteModel(f"{target.name}:", 0, target.remote.url, error=error.message)]


def _models_of(target: Target, timeout_s: float) -> list[RemoteModel]:
    from kvchat.backends.remote.link import Link
    from kvchat.backends.remote.server import models_of

    link = Link(target)
    try:
        kind, models = models_of(link, timeout_s=timeout_s)
    finally:
        link.close()
    mark = "#" if target.name == target.remote.url else ":"
    url = target.remote.url
    return [RemoteModel(f"{target.name}{mark}{one.id}", one.context, url, kind) for one in models]
