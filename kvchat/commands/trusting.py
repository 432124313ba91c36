"""Asking the user once, if there is a terminal, whom they trust: the prompts beside their work, a model's own code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvchat.chat.opening import Opening
from kvchat.config import Config
from kvchat.errors import UntrustedCodeError, UsageError
from kvchat.prompts.shelves import Prompts
from kvchat.trust import Kind, Trust, owner_of
from kvchat.ui.asking import agrees, can_ask

if TYPE_CHECKING:
    from kvchat.models.sources.catalog import ModelFiles


def prompts_around(trust: Trust) -> Prompts:
    """All prompts that can be named in the working folder."""
    return Prompts.around(Path.cwd(), is_trusted=lambda folder: trust.trusts(Kind.PROMPTS, folder))


def prompts_with(name: str, trust: Trust) -> Prompts:
    """The same, after the user was asked about the folder beside their work, if it has the name and the user was never asked."""
    prompts = prompts_around(trust)
    folder = prompts.untrusted
    if folder is None or name not in prompts.waiting() or not can_ask():
        return prompts
    if trust.verdict(Kind.PROMPTS, folder) is not None:
        return prompts
    what = f"The prompts in {folder} (owner: {owner_of(folder)}) decide which model answers, what it is told and how"
    answer = agrees(f"{what} it answers. Trust them from now on?")
    if answer is not None:
        trust.decide(Kind.PROMPTS, folder, answer)
    return prompts_around(trust)


def trusting(start: Opening, error: UntrustedCodeError) -> Opening:
    """Where to begin anew after the user was asked about a model's own code, and agreed. Raises `error` if not."""
    config, name = start.config, start.config.model.name
    files = _files(name, config)
    trust = Trust.from_config(config)
    if files is None or not can_ask() or trust.verdict(Kind.CODE, files.folder) is not None:
        raise error
    what = (
        f"{name} brings code of its own in {files.folder} (owner: {owner_of(files.folder)}), which would run"
    )
    answer = agrees(f"{what} with all of your rights. Trust it from now on?")
    if answer is not None:
        trust.decide(Kind.CODE, files.folder, answer)
    if not answer:
        raise error
    model = replace(
        config.model, trust_remote_code=not config.chat.save
    )  # what is not remembered holds for now
    return replace(start, config=replace(config, model=model))


def trust_model(name: str, config: Config) -> None:
    """Remember that the user trusts the code of a model on this disk. Raises UsageError for one that is not there."""
    files = _files(name, config)
    if files is None:
        raise UsageError(
            f"{name} is not on this disk yet", f"say /model {name}; you are then asked about its code"
        )
    Trust.from_config(config).decide(Kind.CODE, files.folder, True)


def _files(name: str, config: Config) -> ModelFiles | None:
    """A model's files, if they are here."""
    from kvchat.models.sources.catalog import Catalog

    return Catalog(config.paths.models, offline=True).find(name)
