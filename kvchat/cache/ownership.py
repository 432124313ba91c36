"""Whose files these are: what somebody else may have written, or put elsewhere, is not read. Knows no format, no budget."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from kvchat.cache.entry import EntryError

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def open_own(path: Path | str) -> int:
    """The descriptor of a regular file that is ours alone, no link. Raises OSError, and EntryError for another."""
    flags = (
        os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    )  # a pipe's reader would wait for its writer
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise EntryError("it is a link", is_kept=True) from None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise EntryError("it is no file", is_kept=True)
        _check(found)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_own(path: Path, most_bytes: int) -> bytes:
    """The content of such a file. Raises OSError, and EntryError for one that is not ours alone or is longer."""
    descriptor = open_own(path)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise EntryError("it is too long")
    return content


def check_folder(path: Path) -> os.stat_result:
    """What the system knows of a folder that is ours alone, no link. Raises OSError, and EntryError for another."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise EntryError("it is a link", is_kept=True)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    _check(found)
    return found


def check_top(path: Path) -> None:
    """Check the folder that all others lie in, where the user may have put a link to it. Raises OSError, and EntryError
    for another user's, or one that everybody may write. What one's group puts there is of no use to it: it owns that."""
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise EntryError(f"{path} is not yours alone: it belongs to another user", is_kept=True)
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise EntryError(f"{path} is not yours alone: other users can write it", is_kept=True)


def is_own_folder(path: Path) -> bool:
    """Whether `check_folder` lets it pass."""
    try:
        check_folder(path)
    except (OSError, EntryError):
        return False
    return True


def _check(found: os.stat_result) -> None:
    """Raise EntryError for what others own or can write; the system's own user can do so anyway."""
    if found.st_uid not in (os.geteuid(), 0):
        raise EntryError("it belongs to another user", is_kept=True)
    if found.st_mode & _WRITABLE_BY_OTHERS:
        raise EntryError("other users can write it", is_kept=True)
