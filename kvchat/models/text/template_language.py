"""Jinja as chat templates expect it: transformers' conventions, in a sandbox, with the clock stopped. Knows no message."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from threading import Lock
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols

from kvchat.errors import ModelUnavailableError, TemplateRefusedError, one_line
from kvchat.sandbox.environment import BoundedEnvironment
from kvchat.sandbox.meter import OverLimit

APART_KEYS = ("thinking", "reasoning_content", "reasoning")
"""The keys under which templates look for the reasoning of an answer beside its content."""


class TemplateProgram:
    """A template's source, compiled. Raises ModelUnavailableError when it does not parse."""

    def __init__(self, source: str) -> None:
        self.tells_time = "strftime_now" in source
        self.reads_tools = re.search(r"(?<![\w.'\"])tools\b", source) is not None
        self._environment = _environment()
        self._turn = Lock()  # the environment counts one rendering at a time
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # Python's compiler and its recursion have their say too
            raise ModelUnavailableError(
                f"the chat template has an error: {one_line(error)}",
                "give a working one with --chat-template",
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], now: datetime, **names: Any) -> str:
        """The text of `messages`.

        Raises TemplateRefusedError when the template refuses them or fails, ModelUnavailableError when it asks for
        more time or memory than any template needs.
        """
        given = {"strftime_now": now.strftime, "tools": None, "documents": None} | names
        size = sum(len(text) for message in messages for text in message.values()) + len(str(given["tools"]))
        try:
            with self._turn:
                self._environment.meter.start(size, len(messages))
                return self._template.render(messages=messages, **given)
        except jinja2.TemplateError as error:
            raise TemplateRefusedError(
                f"the chat template refuses this conversation: {one_line(error)}", "try --chat-template"
            ) from error
        except OverLimit as error:
            raise ModelUnavailableError(
                f"the chat template is stopped: {error}", "give a working one with --chat-template"
            ) from error
        except Exception as error:  # whatever a template's own expressions run into
            raise TemplateRefusedError(
                f"the chat template fails: {one_line(error)}", "try --chat-template"
            ) from error


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks answers for training; here its body is just printed."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> BoundedEnvironment:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    return environment
