"""The errors that a user can fix, each with its remedy and its exit code; bugs of ours stay assertions.

KvchatError                  1  something went wrong while running
├── UsageError               2  the command, a flag or a value is wrong
├── ModelUnavailableError    3  the model can't be had or can't be read
│   ├── TemplateRefusedError 3  its chat template refuses this conversation
│   └── UntrustedCodeError   3  it brings code of its own that the user has not trusted
├── ContextOverflowError     4  the conversation no longer fits the model's context
├── OutOfMemoryError         5  the machine's or the device's memory is used up
├── PassingError             1  the system refused what it gives at other times
└── EngineDiedError          1  the engine process ended; the conversation is kept
"""

from __future__ import annotations

import errno


class KvchatError(Exception):
    """One line that says what happened, and one that says what to do about it.

    `str(error)` is `message`, or `message: remedy` when there is a remedy.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}: {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy


class UsageError(KvchatError):
    """The command, a flag or a value is wrong."""

    exit_code = 2


class ModelUnavailableError(KvchatError):
    """The model can't be had or can't be read."""

    exit_code = 3


class TemplateRefusedError(ModelUnavailableError):
    """The chat template refuses these messages or fails on them; it may accept others."""


class UntrustedCodeError(ModelUnavailableError):
    """The model brings code of its own that the user has not trusted."""


class ContextOverflowError(KvchatError):
    """The conversation no longer fits the model's context."""

    exit_code = 4


NO_ROOM = (
    "shorten the message, or make room with /compact, /drop or /clear (outside of the chat: --when-full auto)"
)
"""What to do about a context that a prompt does not fit."""


class OutOfMemoryError(KvchatError):
    """The machine's or the device's memory is used up."""

    exit_code = 5


class PassingError(KvchatError):
    """The system refused what it gives at other times, such as one more open file: trying again may do."""


class EngineDiedError(KvchatError):
    """The engine process ended; the conversation is kept."""


def reason_of(error: Exception) -> str:
    """Why something could not be read or written, in words; the path is named beside it."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def one_line(error: BaseException) -> str:
    """What an error raised by foreign code says, in one line of bounded length."""
    said = getattr(error, "message", None) or error
    words = " ".join(str(said)[:2000].split()) or type(error).__name__
    return words if len(words) <= 300 else words[:299] + "…"


def is_memory_gone(error: BaseException) -> bool:
    """Whether Python or the system says that memory ran out."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C."""

ERROR_TYPES: dict[str, type[KvchatError]] = {
    cls.__name__: cls
    for cls in (
        KvchatError,
        UsageError,
        ModelUnavailableError,
        TemplateRefusedError,
        UntrustedCodeError,
        ContextOverflowError,
        OutOfMemoryError,
        PassingError,
        EngineDiedError,
    )
}
"""Every error by its class name, for carrying one across a process border."""
