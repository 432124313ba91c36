"""The one boundary for what is read from a model's files: regular files of a bounded size, UTF-8, JSON of a bounded depth.

Knows no key of any file. Whatever a library or its native code makes of a file becomes one line with a remedy.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvchat.errors import KvchatError, ModelUnavailableError, reason_of

FETCH_AGAIN = "fetch the model again"
SMALL_BYTES = 1 << 24
"""What a config, a template or the settings of a tokenizer may take."""
LARGE_BYTES = 1 << 26
"""The same of a vocabulary and of an index of weights: the largest that are published take half of it."""
POINTER_BYTES = 200
"""The longest beginning of a file that tells such a pointer."""
_MAX_DEPTH = 64
_NATIVE_PANIC = "PanicException"  # what a panic of a Rust library is in Python; it derives from BaseException


@contextmanager
def boundary(what: str, remedy: str) -> Iterator[None]:
    """Raise ModelUnavailableError with `what` and its cause for whatever is raised inside, panics of native code too."""
    try:
        yield
    except (KvchatError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _NATIVE_PANIC:
            raise
        raise ModelUnavailableError(f"{what} ({first_line(error)})", remedy) from error


def first_line(error: BaseException) -> str:
    """An exception in a few words."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError | UnicodeDecodeError):
        return reason_of(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def shown(value: Any) -> str:
    """A value of a file in a message: no more than its beginning, in ASCII."""
    try:
        return ascii(value)[:60]
    except ValueError:  # a whole number of too many digits
        return "such a number"


def read_bytes(path: Path, limit: int = SMALL_BYTES) -> bytes:
    """A regular file of at most `limit` bytes. Raises FileNotFoundError, and ModelUnavailableError for anything else."""
    with _file_of(path):
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # opening a FIFO would wait for ever
            raise ValueError("it is no regular file")
        if state.st_size > limit:
            raise ValueError(f"it has {state.st_size} bytes, and {limit} are the most that make sense")
        content = path.read_bytes()
    if is_pointer(content):
        raise ModelUnavailableError(
            f"{path} is a pointer of Git LFS and not the file itself", "fetch it with git lfs pull"
        )
    return content


def read_text(path: Path, limit: int = SMALL_BYTES) -> str:
    """The same, as text."""
    content = read_bytes(path, limit)
    with _file_of(path):
        return content.decode("utf-8")


def read_object(path: Path, limit: int = SMALL_BYTES) -> dict[str, Any]:
    """The same, as a JSON object that is not nested deeply."""
    text = read_text(path, limit)
    with _file_of(path):
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        if limit <= SMALL_BYTES and _depth(content) > _MAX_DEPTH:
            raise RecursionError
    return content


def read_object_if_any(path: Path, limit: int = SMALL_BYTES) -> dict[str, Any]:
    """The same; empty where there is no such file."""
    try:
        return read_object(path, limit)
    except FileNotFoundError:
        return {}


def is_pointer(content: bytes) -> bool:
    """Whether a file is what Git LFS puts in a large file's place."""
    return content.startswith(b"version ") and b"git-lfs" in content[:POINTER_BYTES]


@contextmanager
def _file_of(path: Path) -> Iterator[None]:
    try:
        with boundary(f"{path} can't be read", FETCH_AGAIN):
            yield
    except ModelUnavailableError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise


def _depth(content: Any) -> int:
    """How deep lists and objects lie in one another."""
    depth, level = 0, [content]
    while level and depth <= _MAX_DEPTH:
        depth += 1
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
    return depth
