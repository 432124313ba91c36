"""A prompt's body to text, in Jinja's sandbox, with errors that name the file's line. Knows no prompt's head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from jinja2 import FunctionLoader, StrictUndefined, TemplateError, TemplateNotFound, TemplateSyntaxError

from kvchat.errors import UsageError, one_line
from kvchat.sandbox.environment import BoundedEnvironment
from kvchat.sandbox.meter import Meter, OverLimit
from kvchat.sandbox.operations import check_moment_format

_MAX_INCLUDED_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """`now` of a template: called with a format, or written out as it is."""

    tell: Callable[[str], str]
    form: str

    def __call__(self, format: str | None = None) -> str:
        """The time in this form."""
        return self.tell(self.form if format is None else format)

    def __str__(self) -> str:
        return self()


def _told(meter: Meter, now: datetime, form: str) -> str:
    check_moment_format(meter, now, form)
    return now.strftime(form)


def environment(folder: Path, now: datetime, mark: str = "") -> BoundedEnvironment:
    """Where a body is rendered: no undefined names, no way out, bounded; includes from `folder` alone.

    Without `mark` the clock shows `now`. With it everything that changes from one use to the next (the clock, chance,
    included files) gives `mark` in its place.
    """
    env = BoundedEnvironment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: mark or included(folder, name)),
    )

    def clock(default: str) -> Clock:
        return Clock(lambda form: mark or _told(env.meter, now, form), default)

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
        if path.stat().st_size > _MAX_INCLUDED_BYTES:
            raise TemplateNotFound(name, f"{path} is too large to be included")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateNotFound(name, f"can't read {path}: {error}") from None


def rendered(
    body: str, values: Mapping[str, object], *, path: Path, first_line: int, now: datetime, mark: str = ""
) -> str:
    """The body's text. Raises UsageError with the line in `path`; the body begins at its line `first_line`."""
    env = environment(path.parent, now, mark)
    try:
        env.meter.start(sum(len(str(value)) for value in values.values()))
        return env.from_string(body).render(values).strip()
    except TemplateSyntaxError as error:
        where = error.filename or error.name
        line = error.lineno if where else error.lineno + first_line - 1
        raise UsageError(f"{where or path}, line {line}: {_plain(error)}", "fix the template") from None
    except TemplateError as error:
        raise UsageError(
            f"{_place(error, path, first_line)}: {_plain(error)}", "declare it under vars, or fix it"
        ) from None
    except OverLimit as error:
        raise UsageError(
            f"{_place(error, path, first_line)}: the template is stopped: {error}", "fix it"
        ) from None
    except Exception as error:  # whatever its expressions, its nesting or Python's compiler run into
        raise UsageError(f"{_place(error, path, first_line)}: {_plain(error)}", "fix the template") from None


def _place(error: Exception, path: Path, first_line: int) -> str:
    """The file and the line where an error arose."""
    return f"{path}, line {_line(error.__traceback__) + first_line - 1}"


def _plain(error: Exception) -> str:
    """What went wrong, without its full stop, for a remedy follows."""
    return one_line(error).rstrip(".")


def _line(trace: TracebackType | None) -> int:
    """The line of the body where an error arose."""
    line = 1
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
