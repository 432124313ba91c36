"""Jinja as chat templates expect it: transformers' conventions, in a sandbox, with the clock stopped. Knows no message."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from threading import Lock
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols

from kvchat.errors import ModelUnavailableError, TemplateRefusedError, one_line
from kvchat.models.text.template_steps import Looked, Steps, in_steps
from kvchat.sandbox.environment import BoundedEnvironment
from kvchat.sandbox.meter import OverLimit

APART_KEYS = ("thinking", "reasoning_content", "reasoning")
"""The keys under which templates look for the reasoning of an answer beside its content."""

Message = Mapping[str, Any]
"""A message as a template takes it."""


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
        self._in_steps: jinja2.Template | None = None
        with suppress(Exception):  # as above; then it is rendered whole
            if cut := in_steps(self._environment, source):
                self._in_steps, self._ahead = self._environment.from_string(cut.tree), cut.ahead

    @property
    def has_steps(self) -> bool:
        """Whether the text of a conversation can be written from some message on."""
        return self._in_steps is not None

    def render(self, messages: Sequence[Message], now: datetime, **names: Any) -> str:
        """The text of `messages`.

        Raises TemplateRefusedError when the template refuses them or fails, ModelUnavailableError when it asks for
        more time or memory than any template needs.
        """
        return self._rendered(self._template, messages, {"messages": messages} | names, now)

    def steps(self, messages: Sequence[Message], first: int, now: datetime, **names: Any) -> Steps | None:
        """The same text in steps, those of the messages before `first` left out; None where it can't be cut.

        Raises what `render` raises.
        """
        if self._in_steps is None:
            return None
        looked = Looked(messages, first, self._ahead)
        given = {"messages": looked, "steps": looked.steps(), "first_step": first} | names
        return Steps.of(self._rendered(self._in_steps, messages[first:], given, now), looked)

    def _rendered(
        self, template: jinja2.Template, new: Sequence[Message], names: Mapping[str, Any], now: datetime
    ) -> str:
        """What a template writes of which so many messages are `new`."""
        given: dict[str, Any] = {"strftime_now": now.strftime, "tools": None, "documents": None, **names}
        size = sum(len(text) for message in new for text in message.values()) + len(str(given["tools"]))
        try:
            with self._turn:
                self._environment.meter.start(size, len(new))
                return template.render(**given)
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
