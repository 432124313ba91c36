"""A prompt's body to text, in Jinja's sandbox, with errors that name the file's line. Knows no prompt's head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType

from jinja2 import FunctionLoader, StrictUndefined, TemplateError, TemplateNotFound, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvchat.errors import UsageError

Clock = Callable[..., str]
_TOO_DEEP = (RecursionError, SyntaxError, MemoryError)
"""What a body runs into that is nested deeper than Python compiles."""


def environment(folder: Path, now: datetime, mark: str = "") -> ImmutableSandboxedEnvironment:
    """Where a body is rendered: no undefined names, no way out, includes from `folder` alone.

    Without `mark` the clock shows `now`. With it everything that changes from one use to the next (the clock, chance,
    included files) gives `mark` in its place.
    """
    env = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: mark or included(folder, name)),
    )
    env.globals = {name: env.globals[name] for name in ("range", "dict", "namespace", "cycler", "joiner")}

    def clock(default: str) -> Clock:
        return lambda format=default: mark or now.strftime(format)

    env.globals |= {"today": clock("%Y-%m-%d"), "now": clock("%Y-%m-%d %H:%M")}
    if mark:
        env.filters["random"] = lambda values: mark
    return env


def included(folder: Path, name: str) -> str:
    """The text of a file in `folder` or below it. Raises TemplateNotFound, also for one that lies elsewhere."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise TemplateNotFound(name, f"no file {name!r} in {folder}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateNotFound(name, f"can't read {path}: {error}") from None


def rendered(
    body: str, values: Mapping[str, object], *, path: Path, first_line: int, now: datetime, mark: str = ""
) -> str:
    """The body's text. Raises UsageError with the line in `path`; the body begins at its line `first_line`."""
    try:
        return environment(path.parent, now, mark).from_string(body).render(values).strip()
    except TemplateSyntaxError as error:
        where = error.filename or error.name
        line = error.lineno if where else error.lineno + first_line - 1
        raise UsageError(
            f"{where or path}, line {line}: {_plain(error.message)}", "mend the template"
        ) from None
    except TemplateError as error:
        line = _line(error.__traceback__) + first_line - 1
        raise UsageError(
            f"{path}, line {line}: {_plain(error.message)}", "declare it under vars, or mend it"
        ) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, *_TOO_DEEP) as error:
        line = _line(error.__traceback__) + first_line - 1
        raise UsageError(f"{path}, line {line}: {_plain(str(error))}", "mend the template") from None


def _plain(message: str | None) -> str:
    """What jinja says without its full stop, for a remedy follows."""
    return (message or "").rstrip(".")


def _line(trace: TracebackType | None) -> int:
    """The line of the body where an error arose."""
    line = 1
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
