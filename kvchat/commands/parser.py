"""The parser of the command line: the chat's flags, and the commands of a table. Runs nothing, prints the version alone."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from kvchat.commands.command import Command
from kvchat.commands.elsewhere import said_here
from kvchat.commands.flags import EVERYWHERE, FLAGS, Flag
from kvchat.commands.table import COMMANDS
from kvchat.config import Config
from kvchat.errors import (
    UsageError,
)

Run = Callable[[argparse.Namespace, Config], int]
"""What is run with the arguments and the settings; its exit code."""
_EPILOG = """\
Without a question, in a terminal, kvchat opens a chat; type /help there. With one, or in a pipe, it answers and ends:
piped text comes first, then the prompt; only the answer goes to stdout.

exit codes: 0 success, 1 failure while running, 2 wrong usage, 3 model unavailable, 4 context full,
5 out of memory, 130 interrupted, 141 output pipe closed
"""


def with_question(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The arguments, with -p in front of a question that stands where a command could: it has more than one word; what
    other programs call otherwise is said as here.

    Raises UsageError for a flag before it that is not known; argparse would take the word behind that for a command.
    """
    known, takes_value = parser._option_string_actions, False
    for at, word in enumerate(argv):
        name = word.partition("=")[0]
        if takes_value:
            takes_value = False
        elif word.startswith("--") and word != "--" and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {nearest[0]}?" if nearest else f"see {parser.prog} --help"
            raise UsageError(f"no option is called {name}", remedy)
        elif not word.startswith("-"):
            if len(word.split()) > 1:
                return [*argv[:at], "-p", *argv[at:]]
            here = said_here(argv[at:], {row.name.split()[0] for row in COMMANDS})
            return [*argv[:at], *(here if here == list(argv[at:]) else with_question(here, parser))]
        else:
            takes_value = name == word and name in known and known[name].nargs in (None, "?")
    return list(argv)


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of exiting. What `fill` adds is added once it parses: no start waits for the arguments
    of all commands."""

    fill: Callable[[_Parser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if message.startswith("argument COMMAND"):
            raise UsageError(
                "there is no such command", f"put a question after -p, or see {self.prog} --help"
            )
        raise UsageError(message, f"see {self.prog} --help")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> NoReturn:
        import kvchat

        sys.stdout.write(f"kvchat {kvchat.__version__}\n")
        parser.exit()


def make_parser(chat: Run, printing: Callable[[Command], Run]) -> argparse.ArgumentParser:
    """What parses the command line: the namespace's `run` is `chat`, or what `printing` makes of a command."""
    parser = _Parser(
        prog="kvchat",
        usage="kvchat [options]\n       kvchat COMMAND [arguments]",
        description="Chat with a local model that never computes the same token twice.",
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=chat, reads_settings=True, preset=None)
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            flag.add_to(group)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    _add_commands(parser, printing)
    return parser


def _add_commands(parser: _Parser, printing: Callable[[Command], Run]) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", prog="kvchat")
    groups: dict[str, dict[str, Command]] = {}
    for row in COMMANDS:
        group, _, verb = row.name.partition(" ")
        groups.setdefault(group, {})[verb] = row
    for group, rows in groups.items():
        if "" in rows:
            _add_row(commands, group, rows[""], printing(rows[""]))
            continue
        names = "|".join(rows)
        about = next(iter(rows.values())).about
        inner = commands.add_parser(group, help=f"{about}: {names}", allow_abbrev=False)
        inner.set_defaults(run=_without_verb(group, names))
        inner.fill = partial(_add_verbs, rows=rows, names=names, printing=printing)


def _add_verbs(
    parser: _Parser, *, rows: dict[str, Command], names: str, printing: Callable[[Command], Run]
) -> None:
    verbs = parser.add_subparsers(metavar=names)
    for verb, row in rows.items():
        _add_row(verbs, verb, row, printing(row))


def _add_row(commands: Any, name: str, row: Command, run: Run) -> None:
    parser = commands.add_parser(name, help=row.help, description=row.help, allow_abbrev=False)
    parser.set_defaults(run=run, reads_settings=row.reads_settings)
    parser.fill = partial(_add_arguments, row=row)


def _add_arguments(parser: _Parser, *, row: Command) -> None:
    for name, rest in row.arguments.items():
        parser.add_argument(name, **rest)
    for flag in (flag for flags in FLAGS.values() for flag in flags):
        if flag.names.split()[0] in (*EVERYWHERE, *row.flags):
            Flag(flag.names, flag.help, flag.key, flag.rest | {"default": argparse.SUPPRESS}).add_to(parser)


def _without_verb(group: str, verbs: str) -> Run:
    def refuse(args: argparse.Namespace, config: Config) -> int:
        raise UsageError(f"kvchat {group} needs a command", f"add one of {verbs.replace('|', ', ')}")

    return refuse
