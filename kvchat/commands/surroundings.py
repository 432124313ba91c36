"""What the dialogue's commands reach beside the conversation: other models, and the cache's folder. Loads no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from kvchat.backends.base import Backend
from kvchat.config import Config
from kvchat.trust import Trust, trust_for_now
from kvchat.ui.desk import ModelRow, Surroundings


def surroundings_of(
    config: Config,
    open_backend: Callable[[Config], Backend],
    *,
    trusts_prompts: bool = False,
    origins: Mapping[str, str] | None = None,
) -> Surroundings:
    """Other models with the settings of this one but its adapter and the trust in it, and this cache's folder.

    `origins` says where each setting (`section.key`) was given that has not its default.
    """
    trust = Trust.from_config(config)
    if trusts_prompts:
        trust_for_now(trust)

    def open_model(name: str) -> Backend:
        trusts = config.model.trust_remote_code and name == config.model.name
        model = replace(config.model, name=name, adapter=None, trust_remote_code=trusts)
        return open_backend(replace(config, model=model))

    def trust_code(name: str) -> None:
        from kvchat.commands.trusting import trust_model

        trust_model(name, config)

    def models() -> list[ModelRow]:
        from kvchat.models.sources.catalog import Catalog
        from kvchat.models.sources.others import others

        own = Catalog(config.paths.models, offline=True).entries()
        rows = [ModelRow(entry.name, entry.name, entry.num_bytes) for entry in own]
        remotes = [f"{name}:{remote.model or ''}" for name, remote in config.remotes.items()]
        found = others(Path.home(), os.environ)
        return [
            *rows,
            *(ModelRow(name, name, 0) for name in remotes),
            *(ModelRow(str(each.path), each.name, each.num_bytes, each.program) for each in found),
        ]

    def stored_tips() -> Mapping[tuple[str, str], int]:
        from kvchat.cache.maintenance import stored_tips

        return stored_tips(config.paths.cache)

    def save_settings(values: Mapping[str, object]) -> Path:
        from kvchat.commands.saving import save_settings

        return save_settings(values)

    def forget(gone: Collection[tuple[str, str]], kept: Collection[tuple[str, str]]) -> object:
        from kvchat.cache.removal import forget

        return forget(config.paths.cache, frozenset(gone), frozenset(kept))

    return Surroundings(
        open_model, models, stored_tips, trust, trust_code, origins or {}, save_settings, forget
    )
