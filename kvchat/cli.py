"""The command line: flags -> settings -> backend -> front end. The one place that picks implementations."""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from kvchat.commands.chat import Backends, chat
from kvchat.commands.flags import EVERYWHERE, FLAG_NAMES, FLAGS, Flag
from kvchat.commands.starting import dialogue_backend, ending_at_once, oneshot_backend
from kvchat.commands.table import COMMANDS, Command
from kvchat.config import Config, load_config
from kvchat.errors import (
    EXIT_INTERRUPTED,
    KvchatError,
    OutOfMemoryError,
    UsageError,
    is_memory_gone,
    reason_of,
)
from kvchat.remotes import ad_hoc_name
from kvchat.ui.clean import for_data, for_messages
from kvchat.ui.files import whole_text
from kvchat.ui.tables import Styled

EXIT_BROKEN_PIPE = 128 + 13
_MESSAGE_LENGTH = 2000
"""Most characters of an error's line; some quote what they were given."""


_EPILOG = """\
Without a question, in a terminal, kvchat opens a chat; type /help there. With one, or in a pipe, it answers and ends:
piped text comes first, then the prompt; only the answer goes to stdout.

exit codes: 0 success, 1 failure while running, 2 wrong usage, 3 model unavailable, 4 context full,
5 out of memory, 130 interrupted, 141 output pipe closed
"""


def main(argv: Sequence[str] | None = None, *, backends: Backends | None = None) -> int:
    """Run kvchat; the exit code. No exception leaves it but SystemExit.

    Without `argv` it is the program: the process ends here where threads are left that nobody waits for.
    """
    if argv is not None:
        return _run(argv, backends)
    try:
        code = _run(sys.argv[1:], backends)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    return _end(code)


def _run(argv: Sequence[str], backends: Backends | None) -> int:
    _open_closed_streams()
    _forgive_encodings()
    with _clean_streams(is_json="--json" in argv):
        try:
            _end_on_signals()
            with ending_at_once():
                args, config = _asked(argv, backends or Backends(oneshot_backend, dialogue_backend))
            code = args.run(args, config)
            sys.stdout.flush()
            return int(code)
        except (SystemExit, GeneratorExit):
            raise
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BROKEN_PIPE
        except BaseException as error:  # all of them: what native code panics with is no Exception
            return _fail(error if isinstance(error, KvchatError) else _error_of(error), argv)


def _asked(argv: Sequence[str], backends: Backends) -> tuple[argparse.Namespace, Config]:
    """What is to be run, and the settings. Raises UsageError."""
    parser = _parser(backends)
    args = parser.parse_args(_with_question(argv, parser))
    _check_folder()
    settings = _settings(args)
    args.given = {name for name, value in settings.items() if value is not None}
    return args, load_config(settings, flag_names=FLAG_NAMES) if args.reads_settings else Config()


def _with_question(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The arguments, with -p in front of a question that stands where a command could: it has more than one word.

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
            is_question = len(word.split()) > 1
            return [*argv[:at], "-p", *argv[at:]] if is_question else list(argv)
        else:
            takes_value = name == word and name in known and known[name].nargs in (None, "?")
    return list(argv)


def _end(code: int) -> int:
    """The exit code, where the interpreter may see to its end: under a thread that loads torch it aborts, and Ctrl-C
    within an `exec`, such as dataclasses make, lets it end by that signal though it was handled."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # no end comes sooner than this one
    if threading.active_count() == 1 and code != EXIT_INTERRUPTED:
        return code
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@contextmanager
def _clean_streams(*, is_json: bool) -> Iterator[None]:
    """Nothing that anybody prints meanwhile gives a terminal orders, and no thread prints a traceback."""
    before = sys.stdout, sys.stderr, threading.excepthook
    sys.stdout = cast(TextIO, for_data(sys.stdout, is_json=is_json))
    sys.stderr = cast(TextIO, for_messages(sys.stderr, is_json=is_json))
    threading.excepthook = _warn_of_thread
    try:
        yield
    finally:
        sys.stdout, sys.stderr, threading.excepthook = before


def _warn_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Say what a thread died of, in one line among the warnings."""
    message = _one_line(f"internal error: {failed.exc_type.__name__}: {failed.exc_value}")
    logging.getLogger("kvchat").warning(message)


def _error_of(error: BaseException) -> KvchatError:
    """What the user is told about an exception that has no message of ours yet."""
    if isinstance(error, RecursionError):
        return KvchatError("the input is nested too deeply", "run it again with -v to see where")
    if is_memory_gone(error):
        return OutOfMemoryError("out of memory", "use a smaller model or a smaller --context")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return KvchatError(
            f"can't write {error.filename or 'the output'}: the disk is full", "free some space"
        )
    if isinstance(error, OSError) and error.filename:
        return KvchatError(
            f"can't use {error.filename}: {reason_of(error)}", "check it, or run again with -v for details"
        )
    if isinstance(error, OSError) and error.strerror:
        return KvchatError(
            f"the system reported an error: {error.strerror}", "run it again with -v to see where"
        )
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return UsageError(f"{error.object[:40]!a} is not valid UTF-8", "use another name")
    return KvchatError(
        f"internal error: {type(error).__name__}: {error}", "run it again with -v to see where"
    )


def _fail(error: KvchatError, argv: Sequence[str]) -> int:
    """One line (or with --json one object) on stderr; the exit code."""
    if "--json" in argv:
        report = {
            "type": type(error).__name__,
            "message": error.message,
            "remedy": error.remedy,
            "exit_code": error.exit_code,
        }
        line = json.dumps({"error": report}, ensure_ascii=False)
    else:
        line = "kvchat: " + _one_line(str(error))
    with suppress(OSError):  # there may be nobody to tell
        print(line, file=sys.stderr, flush=True)
        if os.environ.get("KVCHAT_DEBUG") or "-v" in argv or "--verbose" in argv:
            traceback.print_exc()
    return error.exit_code


def _one_line(message: str) -> str:
    """A message as one line; of a long one the middle is left out."""
    line = " ".join(message.split())
    half = _MESSAGE_LENGTH // 2
    return line if len(line) <= 2 * half else f"{line[:half]} … {line[-half:]}"


def _open_closed_streams() -> None:
    """Point streams that were closed before the start to nowhere, so that no file opened later takes their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is the stream's own
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode))


def _check_folder() -> None:
    """Raises UsageError if the working folder was deleted; libraries fail in worse ways there."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the folder you are in was deleted", "change to another one") from None


def _forgive_encodings() -> None:
    """Bytes that are not text, and text that a stream can't carry, become a mark instead of an error."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _end_on_signals() -> None:
    """SIGTERM and SIGHUP end the program by way of its `finally` clauses, so that backends are closed."""

    def leave(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)

    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, leave)


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of exiting."""

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

        print(f"kvchat {kvchat.__version__}")
        parser.exit()


def _parser(backends: Backends) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kvchat",
        usage="kvchat [options]\n       kvchat COMMAND [arguments]",
        description="Chat with a local model that never computes the same token twice.",
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=partial(chat, backends), reads_settings=True, preset=None)
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            flag.add_to(group)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    _add_commands(parser)
    return parser


def _add_commands(parser: argparse.ArgumentParser) -> None:
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", prog="kvchat")
    verbs: dict[str, Any] = {}
    for row in COMMANDS:
        group, _, verb = row.name.partition(" ")
        if not verb:
            _add_row(groups.add_parser(group, help=row.help, description=row.help, allow_abbrev=False), row)
            continue
        if group not in verbs:
            names = "|".join(
                other.name.partition(" ")[2] for other in COMMANDS if other.name.split()[0] == group
            )
            inner = groups.add_parser(group, help=f"{row.about}: {names}", allow_abbrev=False)
            inner.set_defaults(run=_without_verb(group, names))
            verbs[group] = inner.add_subparsers(metavar=names)
        _add_row(verbs[group].add_parser(verb, help=row.help, description=row.help, allow_abbrev=False), row)


def _add_row(parser: argparse.ArgumentParser, row: Command) -> None:
    parser.set_defaults(run=_printing(row), reads_settings=row.reads_settings)
    for name, rest in row.arguments.items():
        parser.add_argument(name, **rest)
    for flag in (flag for flags in FLAGS.values() for flag in flags):
        if flag.names.split()[0] in (*EVERYWHERE, *row.flags):
            Flag(flag.names, flag.help, flag.key, flag.rest | {"default": argparse.SUPPRESS}).add_to(parser)


def _printing(row: Command) -> Callable[[argparse.Namespace, Config], int]:
    def run(args: argparse.Namespace, config: Config) -> int:
        out = for_data(sys.stdout)
        for line in row.lines(args, config):
            (out.write_styled if isinstance(line, Styled) else out.write)(line)
            print(flush=True)
        return 0

    return run


def _without_verb(group: str, verbs: str) -> Callable[[argparse.Namespace, Config], int]:
    def refuse(args: argparse.Namespace, config: Config) -> int:
        raise UsageError(f"kvchat {group} needs a command", f"add one of {verbs.replace('|', ', ')}")

    return refuse


def _settings(args: argparse.Namespace) -> dict[str, object]:
    """What the flags set, as `load_config` takes it; a saved prompt stands below them. Raises UsageError."""
    given = {name: value for name, value in vars(args).items() if "." in name and value is not None}
    system = given.get("chat.system")
    if getattr(args, "url", None):
        model = given.get("model.name")
        given["model.name"] = ad_hoc_name(args.url, model if isinstance(model, str) else None)
    if isinstance(system, str) and system.startswith("@"):
        given["chat.system"] = _text_of(system[1:])
    if args.template is None:
        if args.var:
            raise UsageError("--var sets a variable of a saved prompt, and none was given", "add -t PROMPT")
        return given
    if "chat.system" in given:
        raise UsageError("-s and -t both give a system prompt", "use one of them")
    from kvchat.commands.prompts import with_prompt

    return with_prompt(args, given)


def _text_of(name: str) -> str:
    try:
        return whole_text(name).strip()
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"can't read the system prompt in {name!r}: {reason_of(error)}", "check the path"
        ) from None
