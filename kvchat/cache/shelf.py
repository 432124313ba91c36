"""All stored files of all fingerprints as one process knows them, and which of them go first; knows no KV and no hashes.

A listing is kept from one write to the next and brought up to date: a folder is listed again where another process held the
lock in between, or where the folder has changed. So evicting a file takes no scan of all of them. That a file was used by
another process is seen when it is about to go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvchat.cache.entry import NO_PARENT, EntryName, is_old_name
from kvchat.cache.folder import TEMPORARY, FileId, fingerprint_folders, remove_file
from kvchat.cache.policy import LeastRecentlyUsed
from kvchat.cache.tree import lineage


@dataclass(slots=True, eq=False)
class ShelvedRun:
    """A file as the policy knows it: `text` is its `name` as it stands in the folder, `used_ns` when it was last used, as
    far as was seen."""

    folder: Path
    text: str
    name: EntryName
    num_bytes: int
    used_ns: int
    parent: ShelvedRun | None = None
    num_children: int = 0

    @property
    def priority(self) -> int:
        return self.name.priority

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder / self.text

    @property
    def id(self) -> FileId:
        """Its folder's name and its key."""
        return self.folder.name, self.name.key


class Shelf:
    """The files under one byte budget. For whoever holds the folder's lock, and for one thread."""

    def __init__(self, root: Path) -> None:
        self.num_bytes = 0
        """Bytes of all files."""
        self.newest_ns = 0
        """The latest time at which any was used."""
        self._root = root
        self._policy = LeastRecentlyUsed()
        self._turn: int | None = None
        self._settled: tuple[int, dict[Path, tuple[int, int]]] = -1, {Path(): (0, 0)}  # of no folder
        self._folders: dict[Path, dict[str, ShelvedRun]] = {}
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._by_id: dict[FileId, ShelvedRun] = {}
        self._waiting: dict[FileId, dict[ShelvedRun, None]] = {}
        """Orphans, by the file that they continue."""

    def refresh(self, turn: int | None) -> None:
        """See what others did since; `turn` is the number that `hold_lock` gave. Raises OSError where it can't be seen."""
        refused: list[OSError] = []
        folders = fingerprint_folders(self._root, refused)
        if refused:
            raise refused[0]
        is_alone = turn is not None and self._turn is not None and turn == self._turn + 1
        self._turn = None  # until all is seen
        for folder in self._folders.keys() - set(folders):
            self._list(folder, [])
        for folder in folders:
            if not is_alone or self._stamps.get(folder) != _stamp(folder):
                with os.scandir(folder) as entries:
                    self._list(folder, entries)
            self._stamps[folder] = _stamp(folder)
        self._turn = turn

    def settle(self) -> None:
        """All that happened since `refresh` is known: no folder has to be listed again for it."""
        for folder in self._folders:
            self._stamps[folder] = _stamp(folder)
        self._settled = self.num_bytes, {folder: self._stamps[folder] for folder in self._folders}

    def settled_bytes(self) -> int | None:
        """Bytes of all files, as was known when they were last settled; None where that may not be so any more.

        From any thread.
        """
        known, stamps = self._settled
        try:
            folders = fingerprint_folders(self._root)
            is_same = len(folders) == len(stamps) and all(
                stamps.get(each) == _stamp(each) for each in folders
            )
        except OSError:
            return None
        return known if is_same else None

    def names(self, folder: Path) -> dict[str, EntryName]:
        """The files of a folder, by their names as they stand there."""
        return {text: run.name for text, run in self._folders.get(folder, {}).items()}

    def add(self, folder: Path, name: EntryName, was: EntryName | None = None) -> None:
        """A file was written, or renamed from what it `was`, and is the one used last."""
        self._drop(self._folders.get(folder, {}).get(str(was or name)))
        text = str(name)
        stat = (folder / text).stat()
        self._put(ShelvedRun(folder, text, name, stat.st_size, stat.st_mtime_ns))

    def used(self, folder: Path, text: str, used_ns: int) -> None:
        """A file was used."""
        run = self._folders.get(folder, {}).get(text)
        self.newest_ns = max(self.newest_ns, used_ns)
        if run:
            run.used_ns = used_ns
            self._policy.used(run)

    def evict(self, excess: int, kept: Iterable[FileId]) -> list[ShelvedRun] | None:
        """Delete files of `excess` bytes, but for `kept` and what they continue; returns which.

        None, with nothing deleted, where that is not enough.
        """
        protected = {
            run for file_id in kept if file_id in self._by_id for run in lineage(self._by_id[file_id])
        }
        if excess > self.num_bytes - sum(run.num_bytes for run in protected):
            return None
        left = self.num_bytes - max(0, excess)
        evicted: list[ShelvedRun] = []
        while self.num_bytes > left:
            run = self._victim(lambda run: run.num_children == 0 and run not in protected)
            if run is None:
                return None
            if remove_file(run.path):
                self._drop(run)
                evicted.append(run)
            else:
                protected.add(run)
        return evicted

    def _victim(self, can_go: Callable[[ShelvedRun], bool]) -> ShelvedRun | None:
        """What goes next: an orphan, or what the policy says, if no other process has used it meanwhile."""
        orphans = (run for runs in self._waiting.values() for run in runs if can_go(run))
        if orphan := next(orphans, None):
            return orphan
        while True:
            run: ShelvedRun | None = self._policy.victim(can_go)
            if run is None:
                return None
            try:
                used_ns = run.path.stat(follow_symlinks=False).st_mtime_ns
            except OSError:
                return run  # it is gone already, or can't be looked at
            if used_ns <= run.used_ns:
                return run
            self.used(run.folder, run.text, used_ns)

    def _list(self, folder: Path, entries: Iterable[os.DirEntry[str]]) -> None:
        """Bring what is known of a folder up to date, and delete what is of no use there."""
        known = self._folders.setdefault(folder, {})
        gone = set(known)
        new: list[ShelvedRun] = []
        for entry in entries:
            if entry.name in known:
                gone.discard(entry.name)
            elif entry.name.endswith(TEMPORARY) or is_old_name(entry.name):
                remove_file(folder / entry.name)
            elif name := EntryName.parse(entry.name):
                with suppress(FileNotFoundError):
                    if not entry.is_dir(follow_symlinks=False):
                        stat = entry.stat(follow_symlinks=False)
                        new.append(ShelvedRun(folder, entry.name, name, stat.st_size, stat.st_mtime_ns))
        for text in gone:
            self._drop(known[text])
        for run in sorted(new, key=lambda run: run.used_ns):
            self._put(run)
        if not known:
            del self._folders[folder]

    def _put(self, run: ShelvedRun) -> None:
        self._folders.setdefault(run.folder, {})[run.text] = run
        self._by_id[run.id] = run
        self.num_bytes += run.num_bytes
        self.newest_ns = max(self.newest_ns, run.used_ns)
        for child in self._waiting.pop(run.id, ()):
            child.parent = run
            run.num_children += 1
        if run.name.parent != NO_PARENT:
            above = run.folder.name, run.name.parent
            run.parent = self._by_id.get(above)
            if run.parent is None:
                self._waiting.setdefault(above, {})[run] = None
            else:
                run.parent.num_children += 1
        self._policy.added(run)

    def _drop(self, run: ShelvedRun | None) -> None:
        if run is None:
            return
        self._policy.removed(run)
        del self._folders[run.folder][run.text]
        self.num_bytes -= run.num_bytes
        if self._by_id.get(run.id) is run:
            del self._by_id[run.id]
        above = run.folder.name, run.name.parent
        if run.parent:
            run.parent.num_children -= 1
        elif above in self._waiting:
            self._waiting[above].pop(run, None)
            if not self._waiting[above]:
                del self._waiting[above]
        if run.num_children:
            self._orphan(run)

    def _orphan(self, parent: ShelvedRun) -> None:
        """What continues a run that is gone waits for another one of that key."""
        for run in self._folders[parent.folder].values():
            if run.parent is parent:
                run.parent = None
                self._waiting.setdefault(parent.id, {})[run] = None


def _stamp(folder: Path) -> tuple[int, int]:
    stat = folder.lstat()
    return stat.st_ino, stat.st_mtime_ns
