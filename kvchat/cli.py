"""The command line: flags -> settings -> backend -> front end. The one place that picks implementations."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO, cast

from kvchat.commands.chat import Backends, chat
from kvchat.commands.command import Command
from kvchat.commands.flags import FLAG_NAMES
from kvchat.commands.parser import Run, make_parser, with_question
from kvchat.commands.starting import dialogue_backend, ending_at_once, oneshot_backend
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
from kvchat.ui.asking import tell
from kvchat.ui.clean import for_data, for_messages
from kvchat.ui.files import whole_text
from kvchat.ui.tables import Styled

EXIT_BROKEN_PIPE = 128 + 13
_MESSAGE_LENGTH = 2000
"""Most characters of an error's line; some quote what they were given."""


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
    parser = make_parser(partial(chat, backends), _printing)
    args = parser.parse_args(with_question(argv, parser))
    _check_folder()
    settings = _settings(args)
    args.given = {name for name, value in settings.items() if value is not None}
    return args, load_config(settings, flag_names=FLAG_NAMES) if args.reads_settings else Config()


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


def _printing(row: Command) -> Run:
    def run(args: argparse.Namespace, config: Config) -> int:
        out, is_empty = for_data(sys.stdout), True
        for line in row.lines(args, config):
            (out.write_styled if isinstance(line, Styled) else out.write)(line)
            print(flush=True)
            is_empty = False
        if is_empty and row.nothing and not (args.json or args.quiet) and sys.stderr.isatty():
            tell(row.nothing)
        return 0

    return run


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
