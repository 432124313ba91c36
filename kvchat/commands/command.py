"""A command beside chatting as a value: its words, its help, its arguments and the function that is run."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kvchat.commands.arguments import Arguments
from kvchat.config import Config


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `group verb` or one word, what the group is about, its help, what it yields.

    `arguments` are its own, for argparse; `flags` are those of the program that may also follow its name, beside
    EVERYWHERE's. A command that does not read the settings runs even if they are wrong, with the defaults. Where it yields
    no line, whoever sits at a terminal is told that there is `nothing`.
    """

    name: str
    about: str
    help: str
    lines: Callable[[argparse.Namespace, Config], Iterator[str]]
    arguments: Arguments = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    reads_settings: bool = True
    nothing: str = ""


def verb(module: str, name: str) -> Callable[[argparse.Namespace, Config], Iterator[str]]:
    """A function of another command module, loaded when it is run."""

    def run(args: argparse.Namespace, config: Config) -> Iterator[str]:
        home = importlib.import_module(f"kvchat.commands.{module}")
        lines: Iterator[str] = getattr(home, name)(args, config)
        return lines

    return run
