"""`kvchat models ...`: the models on this disk, fetched and deleted, and those that remotes serve. Loads no torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvchat.config import Config
from kvchat.ui.clean import one_line

if TYPE_CHECKING:
    from kvchat.models.sources.catalog import Catalog


def _catalog(config: Config) -> Catalog:
    from kvchat.models.sources.catalog import Catalog

    return Catalog(config.paths.models, offline=config.model.offline)


def listed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """One line a model on this disk, the default one also before it is fetched; then those that remotes serve.

    With the name of a remote, or a URL, its models alone. Raises KvchatError where that can't be asked.
    """
    if args.remote is None:
        yield from _local(args, config)
    if config.model.offline:
        return
    from kvchat.commands.remotes import remote_models

    for model in remote_models(config.remotes, args.remote):
        if args.json:
            row = {"name": model.name, "origin": "remote", "context": model.context or None, "url": model.url}
            yield json.dumps(row | ({"error": model.error} if model.error else {}), ensure_ascii=False)
        else:
            context = f"{model.context} tokens" if model.context else ""
            where = model.error or f"{model.kind} at {model.url}"
            yield one_line(f"{model.name:<40} {context:>11}  {where}")


def _local(args: argparse.Namespace, config: Config) -> Iterator[str]:
    for entry in _catalog(config).entries():
        folder = str(entry.folder) if entry.folder else None
        if args.json:
            row = {"name": entry.name, "origin": str(entry.origin), "bytes": entry.num_bytes, "path": folder}
            yield json.dumps(row, ensure_ascii=False)
        else:
            yield one_line(f"{entry.name:<40} {_megabytes(entry.num_bytes)}  {folder or 'not fetched yet'}")


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:8.0f} MB"


def pulled(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Fetch a model, or import it; its folder. Raises ModelUnavailableError."""
    from kvchat.models.sources.catalog import Catalog
    from kvchat.ui.progress import stage_bar

    with stage_bar(sys.stderr, shown=sys.stderr.isatty() and not args.quiet) as progress:
        catalog = Catalog(config.paths.models, offline=config.model.offline, progress=progress)
        files = catalog.pull(args.name)
    yield json.dumps({"name": files.name, "path": str(files.folder)}) if args.json else str(files.folder)


def removed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Delete what was fetched or imported of a model."""
    num_bytes = _catalog(config).remove(args.name)
    if args.json:
        yield json.dumps({"name": args.name, "freed_bytes": num_bytes})
    else:
        yield f"removed {args.name}, {_megabytes(num_bytes).strip()}"


def placed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """The folder of a model that is on this disk. Raises ModelUnavailableError."""
    yield str(_catalog(config).path(args.name))
