"""What `@` stands for in a message: a file, a folder with the text files in it, or a pattern such as `src/*.py`.

Knows names and folders, and reads no file but its beginning.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from kvchat.errors import UsageError

MAX_FILES = 200
"""Most files that one message takes along."""

_MENTION = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|(\S+))')
_PUNCTUATION = ".,;:!?)]}'\""
_SKIPPED = ("__pycache__", "node_modules")
_LOOKED_AT = 4096  # bytes


def mentioned_files(text: str) -> list[str]:
    """The files that a message mentions, each once: in the order of the mentions, those of a folder or a pattern by name.

    What is neither file nor folder nor a pattern that fits one stays a word. Raises UsageError for more than MAX_FILES.
    """
    names: dict[str, None] = {}
    for quoted, word in _MENTION.findall(text):
        found = map(_files_of, _readings(quoted, word))
        names |= dict.fromkeys(next((files for files in found if files), []))
        if len(names) > MAX_FILES:
            raise UsageError(
                f"the message takes more than {MAX_FILES} files along", "name a smaller folder or pattern"
            )
    return list(names)


def mentions_several(text: str) -> bool:
    """Whether a message mentions a folder or a pattern, and not only files by their names. Looks into no folder."""
    names = (name for quoted, word in _MENTION.findall(text) for name in _readings(quoted, word))
    return any(not _is(name, Path.is_file) and ("*" in name or _is(name, _is_folder)) for name in names)


def _readings(quoted: str, word: str) -> list[str]:
    """What a mention may name: what is quoted, or a word with or without the punctuation after it."""
    names = [quoted] if quoted else [word, word.rstrip(_PUNCTUATION)]
    return [name for name in names if name]


def _files_of(name: str) -> list[str]:
    """The files that a name stands for, by name; a few more than a message may have where there are too many."""
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return [name]
        if _is_folder(path):
            return [f"{name.rstrip('/')}/{below}" for below in islice(_below(path), MAX_FILES + 1)]
        found = glob.iglob(str(path), recursive=True) if "*" in name else ()  # noqa: PTH207 (it leaves out what is hidden)
        return sorted(islice((at for at in found if _is_text(Path(at))), MAX_FILES + 1))
    except (OSError, RuntimeError, ValueError):
        return []


def _is_folder(path: Path) -> bool:
    """Whether it is a folder that somebody may want to send: not the root of all files."""
    return path.is_dir() and path.resolve() != Path(path.resolve().anchor)


def _below(folder: Path) -> Iterator[str]:
    """The text files in a folder and the folders in it, by name; nothing that is hidden or made by a program."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and _is_text(path):
                yield str(path.relative_to(folder))


def _is_text(path: Path) -> bool:
    """Whether a file looks like text by its beginning; of an empty one there is nothing to say."""
    if not path.is_file() or not set(_SKIPPED).isdisjoint(path.parts):
        return False
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
        start[:-4].decode()  # its last character may be cut
    except UnicodeDecodeError as error:
        return error.start >= len(start) - 8 and b"\0" not in start
    except OSError:
        return False
    return bool(start) and b"\0" not in start


def _is(name: str, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(Path(name).expanduser())
    except (OSError, RuntimeError, ValueError):
        return False
