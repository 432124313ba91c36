"""`kvchat` without a command: a dialogue in a terminal, one-shot everywhere else. Is given what answers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from kvchat.commands.flags import FLAG_NAMES
from kvchat.commands.starting import ending_at_once
from kvchat.config import Config, origins
from kvchat.errors import UntrustedCodeError, UsageError
from kvchat.ui.files import MAX_INPUT_BYTES

if TYPE_CHECKING:
    from kvchat.backends.base import Backend
    from kvchat.chat.opening import Opening
    from kvchat.chat.session import Session


@dataclass(frozen=True, slots=True)
class Backends:
    """What answers: `oneshot` in this process, `dialogue` in a child."""

    oneshot: Callable[[Config], Backend]
    dialogue: Callable[[Config], Backend]


def chat(backends: Backends, args: argparse.Namespace, config: Config) -> int:
    """Run the front end that fits, a dialogue in a terminal and one-shot everywhere else; the exit code."""
    asked = args.prompt is not None or args.turns is not None or args.json or args.no_stdin
    if asked or not _is_terminal(sys.stdin) or not _is_terminal(sys.stdout):
        return _oneshot(backends, args, config)
    picks = args.resume == "" and not args.fork

    def hold(start: Opening) -> int:
        with ending_at_once():
            from kvchat.chat.room import WhenFull

            backend = backends.dialogue(start.config)
            backend.start()
            try:
                session = start.session(backend)
                session.when_full = WhenFull(start.config.chat.when_full or WhenFull.ASK)
                run = _dialogue(backends, session, start.config, args)
            except BaseException:
                backend.close()
                raise
        with session:
            return run(["/sessions"] if picks else [])

    with ending_at_once():
        start = _opening(args, config, picks=picks)
    return _trusted(start, hold)


def _trusted(start: Opening, run: Callable[[Opening], int]) -> int:
    """What `run` gives; whom the user has to trust for that is asked only where it is needed."""
    try:
        return run(start)
    except UntrustedCodeError as error:
        from kvchat.commands.trusting import trusting

        start = trusting(start, error)
    return run(start)


def _dialogue(
    backends: Backends, session: Session, config: Config, args: argparse.Namespace
) -> Callable[[list[str]], int]:
    """The dialogue that fits, ready to be held; it is given the lines that come before what is typed."""
    from kvchat.commands.surroundings import surroundings_of

    surroundings = surroundings_of(
        config, backends.dialogue, trusts_prompts=args.trust_prompts, origins=_origins(args)
    )
    if config.ui.plain or os.environ.get("TERM") in (None, "", "dumb"):
        from kvchat.ui.lines import LineDialogue

        return LineDialogue(session, sys.stdout, surroundings).run
    from kvchat.ui.repl import Repl

    return Repl(session, config, surroundings, color=_is_coloured()).run


def _origins(args: argparse.Namespace) -> dict[str, str]:
    """Where each setting was given that has not its default."""
    given = {name: value for name, value in vars(args).items() if "." in name}
    return {key: origin.where for key, origin in origins(given, flag_names=FLAG_NAMES).items()}


def _oneshot(backends: Backends, args: argparse.Namespace, config: Config) -> int:
    from kvchat.ui.oneshot import Form, OneShot
    from kvchat.ui.questions import messages_of, one_message, open_turns

    if args.turns is not None and args.prompt is not None:
        raise UsageError("--turns and -p both say what to ask", "use one of them")
    if args.no_stdin and args.turns == "-":
        raise UsageError("--turns - reads stdin, and --no-stdin forbids that", "use one of them")

    def messages() -> Iterator[str]:
        if args.turns is not None:
            return messages_of(open_turns(args.turns, sys.stdin))
        prompt = None if args.prompt is None else os.fsencode(args.prompt).decode(errors="replace")
        return iter(one_message(prompt, "" if args.no_stdin else _piped(sys.stdin)))

    form = Form(
        json=args.json,
        tokens=args.tokens,
        quiet=args.quiet,
        verbose=args.verbose,
        color=_is_coloured(),
        markdown=config.ui.markdown == "always",
        styled=bool(os.environ.get("FORCE_COLOR")),
        reasoning=config.ui.reasoning,
    )

    def ask(start: Opening) -> int:
        with ending_at_once():
            asked = messages()
            backend = backends.oneshot(start.config)
            backend.start()
            opened = start.session(backend)
        with opened as session:
            return OneShot(session, form, stdout=sys.stdout, stderr=sys.stderr).run(asked)

    with ending_at_once():
        start = _opening(args, config, is_oneshot=True)
    return _trusted(start, ask)


def _opening(
    args: argparse.Namespace, config: Config, *, picks: bool = False, is_oneshot: bool = False
) -> Opening:
    """Where the conversation begins; at nothing if the user `picks` a session later."""
    from kvchat.chat.opening import opening

    key = None if picks else args.resume
    return opening(
        config, key=key, is_fork=args.fork, flags=args.given, preset=args.preset, is_oneshot=is_oneshot
    )


def _is_coloured() -> bool:
    return not os.environ.get("NO_COLOR")


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _piped(stdin: TextIO | None) -> str:
    """All of what is piped in; a terminal pipes nothing. Raises UsageError for more than any model takes."""
    if stdin is None or stdin.closed or stdin.isatty():
        return ""
    data = stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise UsageError(
            f"the piped text is larger than {MAX_INPUT_BYTES // 2**20} MiB", "pipe only the part that matters"
        )
    return data.decode("utf-8-sig", errors="replace")
