"""What the dialogue's commands reach beside the conversation: other models, and the cache's folder. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from kvchat.backends.base import Backend
from kvchat.config import Config
from kvchat.trust import Trust, trust_for_now
from kvchat.ui.desk import Surroundings


def surroundings_of(
    config: Config, open_backend: Callable[[Config], Backend], *, trusts_prompts: bool = False
) -> Surroundings:
    """Other models with the settings of this one but its adapter and the trust in it, and this cache's folder."""
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

    def model_names() -> list[str]:
        from kvchat.models.sources.catalog import Catalog

        local = [entry.name for entry in Catalog(config.paths.models, offline=True).entries()]
        return local + [f"{name}:{remote.model or ''}" for name, remote in config.remotes.items()]

    def stored_tips() -> Mapping[tuple[str, str], int]:
        from kvchat.cache.maintenance import stored_tips

        return stored_tips(config.paths.cache)

    return Surroundings(open_model, model_names, stored_tips, trust, trust_code)
