"""What `kvchat GROUP VERB` does beside chatting: a table with a row a command, each yielding lines of stdout."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvchat.config import Config

if TYPE_CHECKING:
    from kvchat.models.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `group verb`, what the group is about, its help, what it yields, its arguments for argparse."""

    name: str
    about: str
    help: str
    lines: Callable[[argparse.Namespace, Config], Iterator[str]]
    arguments: dict[str, dict[str, Any]] = field(default_factory=dict)


def _catalog(config: Config) -> Catalog:
    from kvchat.models.catalog import Catalog

    return Catalog(config.paths.models, offline=config.model.offline)


def _models_ls(args: argparse.Namespace, config: Config) -> Iterator[str]:
    for entry in _catalog(config).entries():
        if args.json:
            yield json.dumps({"name": entry.name, "path": str(entry.folder), "bytes": entry.num_bytes})
        else:
            yield f"{entry.name:<40} {entry.num_bytes / 1e6:8.0f} MB  {entry.folder}"


def _models_pull(args: argparse.Namespace, config: Config) -> Iterator[str]:
    yield str(_catalog(config).resolve(args.name).folder)


def _models_rm(args: argparse.Namespace, config: Config) -> Iterator[str]:
    _catalog(config).remove(args.name)
    yield f"removed {args.name}"


def _models_path(args: argparse.Namespace, config: Config) -> Iterator[str]:
    yield str(_catalog(config).path(args.name))


_MODELS = "models on this disk"
_NAME: dict[str, dict[str, Any]] = {"name": {"metavar": "NAME", "help": "a model, as after -m"}}

COMMANDS: tuple[Command, ...] = (
    Command("models ls", _MODELS, "list the models on this disk", _models_ls),
    Command("models pull", _MODELS, "fetch a model ahead of use", _models_pull, _NAME),
    Command("models rm", _MODELS, "delete a model's files", _models_rm, _NAME),
    Command("models path", _MODELS, "print the folder of a model", _models_path, _NAME),
)
