"""Jinja as chat templates expect it: transformers' conventions, in a sandbox, with the clock stopped. Knows no message."""

from __future__ import annotations

from datetime import datetime
from json import dumps
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvchat.errors import ModelUnavailableError


class TemplateProgram:
    """A template's source, compiled. Raises ModelUnavailableError when it does not parse."""

    def __init__(self, source: str) -> None:
        self.tells_time = "strftime_now" in source
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ModelUnavailableError(
                f"the chat template has an error: {error}", "give a working one with --chat-template"
            ) from error

    def render(self, messages: list[dict[str, str]], now: datetime, **names: Any) -> str:
        """The text of `messages`. Raises ModelUnavailableError when the template refuses them or fails."""
        try:
            return self._template.render(
                messages=messages, strftime_now=now.strftime, tools=None, documents=None, **names
            )
        except jinja2.TemplateError as error:
            raise ModelUnavailableError(
                f"the chat template refuses this conversation: {error}", "try --chat-template"
            ) from error
        except Exception as error:  # whatever a template's own expressions run into
            raise ModelUnavailableError(f"the chat template fails: {error}", "try --chat-template") from error


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks answers for training; here its body is just printed."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: dumps(
        value, **({"ensure_ascii": False} | options)
    )
    environment.globals["raise_exception"] = raise_exception
    return environment
