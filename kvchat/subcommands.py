"""What `kvchat GROUP VERB` does beside chatting: a table with a row a command, each yielding lines of stdout."""

from __future__ import annotations

import argparse
import json
import sys
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
        folder = str(entry.folder) if entry.folder else None
        if args.json:
            row = {"name": entry.name, "origin": str(entry.origin), "bytes": entry.num_bytes, "path": folder}
            yield json.dumps(row, ensure_ascii=False)
        else:
            yield f"{entry.name:<40} {_megabytes(entry.num_bytes)}  {folder or 'not fetched yet'}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:8.0f} MB"


def _models_pull(args: argparse.Namespace, config: Config) -> Iterator[str]:
    from kvchat.models.catalog import Catalog
    from kvchat.ui.progress import stage_bar

    with stage_bar(sys.stderr, shown=sys.stderr.isatty() and not args.quiet) as progress:
        catalog = Catalog(config.paths.models, offline=config.model.offline, progress=progress)
        files = catalog.pull(args.name)
    yield json.dumps({"name": files.name, "path": str(files.folder)}) if args.json else str(files.folder)


def _models_rm(args: argparse.Namespace, config: Config) -> Iterator[str]:
    num_bytes = _catalog(config).remove(args.name)
    if args.json:
        yield json.dumps({"name": args.name, "freed_bytes": num_bytes})
    else:
        yield f"removed {args.name}, {_megabytes(num_bytes).strip()}"


def _models_path(args: argparse.Namespace, config: Config) -> Iterator[str]:
    yield str(_catalog(config).path(args.name))


def _sessions(verb: str) -> Callable[[argparse.Namespace, Config], Iterator[str]]:
    """A verb of `session_commands`, loaded when it is run."""

    def run(args: argparse.Namespace, config: Config) -> Iterator[str]:
        from kvchat import session_commands

        lines: Iterator[str] = getattr(session_commands, verb)(args, config)
        return lines

    return run


_MODELS = "models on this disk"
_NAME: dict[str, dict[str, Any]] = {"name": {"metavar": "NAME", "help": "a model, as after -m"}}


def _bench(what: str) -> Callable[[argparse.Namespace, Config], Iterator[str]]:
    def lines(args: argparse.Namespace, config: Config) -> Iterator[str]:
        from kvchat.bench import commands

        yield from getattr(commands, f"{what}_lines")(args, config)

    return lines


_BENCH = "measurements on this machine"
_LENGTHS: dict[str, dict[str, Any]] = {
    "--lengths": {"metavar": "N", "type": int, "nargs": "+", "help": "tokens of history"}
}
_REPEATS: dict[str, dict[str, Any]] = {
    "--repeats": {"metavar": "N", "type": int, "default": 3, "help": "runs of each"}
}
_SESSIONS = "conversations that were saved"
_SESSION: dict[str, dict[str, Any]] = {
    "session": {
        "metavar": "SESSION",
        "nargs": "?",
        "default": "latest",
        "help": "its name or id, or the beginning of it; without, the latest",
    }
}
_LIMIT: dict[str, dict[str, Any]] = {"--limit": {"type": int, "metavar": "N", "help": "not more than N"}}
_EXPORT: dict[str, dict[str, Any]] = {
    "--format": {"choices": ("md", "json", "html"), "default": "md", "help": "what to make; md if not given"},
    "--output": {"metavar": "FILE", "help": "write to FILE, which only you can read"},
}
_WORDS: dict[str, dict[str, Any]] = {
    "words": {"metavar": "WORD", "nargs": "+", "help": "all have to be there"}
}
_SEVERAL: dict[str, dict[str, Any]] = {
    "sessions": {"metavar": "SESSION", "nargs": "+", "help": "names or ids, or the beginning of one"}
}

COMMANDS: tuple[Command, ...] = (
    Command("models ls", _MODELS, "list the models on this disk", _models_ls),
    Command("models pull", _MODELS, "fetch a model ahead of use", _models_pull, _NAME),
    Command("models rm", _MODELS, "delete a model's files", _models_rm, _NAME),
    Command("models path", _MODELS, "print the folder of a model", _models_path, _NAME),
    Command(
        "bench ttft",
        _BENCH,
        "time to the first token, by where the history is",
        _bench("ttft"),
        _LENGTHS | _REPEATS,
    ),
    Command("bench codec", _BENCH, "what int8 costs in quality", _bench("codec"), _REPEATS),
    Command("sessions ls", _SESSIONS, "list them, the latest first", _sessions("listed"), _LIMIT),
    Command("sessions show", _SESSIONS, "print one", _sessions("shown"), _SESSION),
    Command("sessions search", _SESSIONS, "find words in them", _sessions("found"), _WORDS | _LIMIT),
    Command("sessions export", _SESSIONS, "write one", _sessions("exported_to_file"), _SESSION | _EXPORT),
    Command("sessions rm", _SESSIONS, "delete some", _sessions("removed"), _SEVERAL),
)
