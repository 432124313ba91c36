"""What a client is told when it gets no answer: a status and a line, in the form of the protocol that it speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvchat.errors import (
    ContextOverflowError,
    EngineDiedError,
    KvchatError,
    OutOfMemoryError,
    TemplateRefusedError,
    UsageError,
    one_line,
)

Form = Callable[["RefusedError"], dict[str, Any]]
"""How a protocol writes an error."""

_OPENAI: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
}
_ANTHROPIC: Mapping[int, str] = {**_OPENAI, 503: "overloaded_error"}


class RefusedError(Exception):
    """A request that is not answered. `param` is the field that is to blame, `wait_s` when to ask again, in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        wait_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.wait_s = wait_s

    @property
    def headers(self) -> dict[str, str]:
        """What the response has beside its body."""
        return {} if self.wait_s is None else {"retry-after": str(self.wait_s)}


def refusal_of(error: BaseException) -> RefusedError:
    """What a client is told of an error; of one that is not ours no more than its kind, for it may quote others' text."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ContextOverflowError):
        message = f"this is over the model's maximum context length: {error.message}"
        return RefusedError(400, message, param="messages", code="context_length_exceeded")
    if isinstance(error, UsageError | TemplateRefusedError):
        return RefusedError(400, str(error))
    if isinstance(error, OutOfMemoryError):
        return RefusedError(503, error.message, code="out_of_memory", wait_s=5)
    if isinstance(error, EngineDiedError):
        return RefusedError(503, "the engine ended; it is started again", code="engine_ended", wait_s=1)
    if isinstance(error, KvchatError):
        return RefusedError(503, one_line(error))
    return RefusedError(500, f"internal error: {type(error).__name__}")


def openai_form(error: RefusedError) -> dict[str, Any]:
    """As OpenAI's endpoints say it."""
    kind = _OPENAI.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def anthropic_form(error: RefusedError) -> dict[str, Any]:
    """As Anthropic's endpoints say it."""
    kind = _ANTHROPIC.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}
