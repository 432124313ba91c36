"""A stored file as one process knows it, for whoever evicts it and for whoever looks for its blocks; reads nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

from kvchat.cache.entry import NO_PARENT, EntryName
from kvchat.cache.folder import FileId
from kvchat.cache.header import Header


@dataclass(slots=True, eq=False)
class StoredRun:
    """A file: `text` is its `name` as it stands in the folder, `used_ns` when it was last used, as far as was seen.

    `start` and `first` are known of the files that somebody watches, `seen` are the hashes of its blocks as far as something
    was matched there, and at `stamped_s`, of time.monotonic, this process marked it as used.
    """

    folder: Path
    text: str
    name: EntryName
    num_bytes: int
    used_ns: int
    parent: StoredRun | None = None
    num_children: int = 0
    start: int = 0
    first: bytes = b""
    header: Header | None = None
    seen: tuple[bytes, ...] = ()
    stamped_s: float = -math.inf
    read_header: Callable[[StoredRun], Header | None] = lambda run: run.header

    @property
    def id(self) -> Hashable:
        """Its key."""
        return self.name.key

    @property
    def above(self) -> Hashable:
        return None if self.name.parent == NO_PARENT else self.name.parent

    @property
    def is_state(self) -> bool:
        return self.name.is_state

    @property
    def priority(self) -> int:
        return self.name.priority

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder / self.text

    @property
    def file_id(self) -> FileId:
        """Its folder's name and its key."""
        return self.folder.name, self.name.key

    def ids(self) -> bytes | None:
        """Its own token ids; None when the file can't be used."""
        header = self.read_header(self)
        return header.tokens if header else None
