"""All stored files of all fingerprints as one process knows them, and which of them go first; knows no KV and no chain.

The folder is the index: names are listed again where something has changed, headers are read when first needed. So neither
looking something up nor evicting a file takes a scan of all of them. That a file was used by another process is seen when
it is about to go.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from kvchat.cache.entry import NO_PARENT, EntryError, EntryName, is_old_name
from kvchat.cache.folder import TEMPORARY, FileId, fingerprint_folders, remove_file, turn_of, uncollected
from kvchat.cache.forgetting import Forgetting
from kvchat.cache.ownership import check_folder, check_top
from kvchat.cache.run import StoredRun
from kvchat.cache.tree import lineages

# A folder that changed this recently may change again without a newer time stamp; some file systems count seconds.
RACY_NS = 2_100_000_000

_Stamp = tuple[int, int]


class Watcher(Protocol):
    """Who is told of the files of one folder."""

    def added(self, run: StoredRun) -> None:
        """A file is there."""

    def removed(self, run: StoredRun) -> None:
        """A file is gone."""

    def refused(self, error: EntryError) -> None:
        """The folder can't be used."""


class Shelf:
    """The files under one byte budget, of which one folder is watched. Safe for threads; what says so needs the folder's lock."""

    def __init__(self, root: Path, own: Path, watcher: Watcher, policy: str = "kvchat") -> None:
        self.lock = threading.RLock()
        self.num_bytes = 0
        """Bytes of all files, as of the last `refresh`."""
        self.newest_ns = 0
        """The latest time at which any was used."""
        self._root = root
        self._own = own
        self._watcher = watcher
        self.forgetting = Forgetting(root, policy)
        """Says which goes first."""
        self._is_changing = False  # by this process alone, which holds the lock
        self._turn: int | None = None
        self._is_racy = False
        self._settled: tuple[int, dict[Path, _Stamp]] = -1, {Path(): (0, 0)}  # of no folder
        self._folders: dict[Path, dict[str, StoredRun]] = {}
        self._stamps: dict[Path, _Stamp] = {}
        self._by_id: dict[FileId, StoredRun] = {}
        self._waiting: dict[FileId, dict[StoredRun, None]] = {}
        """Orphans, by the file that they continue."""

    def look(self) -> None:
        """See what the watched folder holds now, where it may have changed. From any thread, without the folder's lock."""
        with self.lock:
            if self._is_changing:
                return
            try:
                check_top(self._root)
                stat = check_folder(self._own)
                stamp = stat.st_ino, stat.st_mtime_ns
                if self._stamps.get(self._own) == stamp and not (
                    self._is_racy and turn_of(self._root) != self._turn
                ):
                    return
                self._is_racy = abs(time.time_ns() - stat.st_mtime_ns) < RACY_NS
                with os.scandir(self._own) as entries:
                    self._list(self._own, entries)
                self._stamps[self._own] = stamp
            except (FileNotFoundError, NotADirectoryError):
                self._list(self._own, ())
            except EntryError as error:
                self._list(self._own, ())
                self._watcher.refused(error)
            except OSError:  # what was seen is still there, as far as anybody knows
                self._stamps.pop(self._own, None)

    @contextmanager
    def changing(self, turn: int | None) -> Iterator[None]:
        """Files are written and deleted in here; what others did since is known at its beginning, and what was done at its
        end. `turn` is the number that the lock gave. Needs it. Raises OSError where it can't be seen."""
        self.refresh(turn)
        self._is_changing = True
        try:
            yield
            self.settle()
        finally:
            self._is_changing = False

    def refresh(self, turn: int | None) -> None:
        """See what others did since; `turn` is the number that the lock gave. Needs it. Raises OSError where it can't be seen."""
        refused: list[OSError] = []
        folders = fingerprint_folders(self._root, refused)
        if refused:
            raise refused[0]
        with self.lock:
            is_alone = turn is not None and self._turn is not None and turn == self._turn + 1
            self._turn = None  # until all is seen
            for folder in self._folders.keys() - set(folders):
                self._list(folder, ())
            for folder in folders:
                stamp = _stamp(folder)
                if not is_alone or self._stamps.get(folder) != stamp:
                    with os.scandir(folder) as entries:
                        self._list(folder, entries, is_locked=True)
                self._stamps[folder] = _stamp(folder)
            self._turn, self._is_racy = turn, True

    def settle(self) -> None:
        """All that happened since `refresh` is known: no folder has to be listed again for it. Needs the lock."""
        with self.lock:
            for folder in (self._own, *self._folders):
                with suppress(FileNotFoundError):
                    self._stamps[folder] = _stamp(folder)
            self._settled = self.num_bytes, {folder: self._stamps[folder] for folder in self._folders}

    def settled_bytes(self) -> int | None:
        """Bytes of all files, as was known when they were last settled; None where that may not be so any more."""
        known, stamps = self._settled
        try:
            folders = fingerprint_folders(self._root)
            is_same = len(folders) == len(stamps) and all(
                stamps.get(each) == _stamp(each) for each in folders
            )
        except OSError:
            return None
        return known if is_same else None

    def add(self, folder: Path, name: EntryName, was: EntryName | None = None) -> None:
        """A file was written, or renamed from what it `was`, and is the one used last. Needs the lock."""
        with self.lock:
            self._drop(self._folders.get(folder, {}).get(str(was or name)))
            text = str(name)
            stat = (folder / text).stat()
            self._put(StoredRun(folder, text, name, stat.st_size, stat.st_mtime_ns))

    def lose(self, run: StoredRun) -> None:
        """A file was found to be gone, or was deleted."""
        with self.lock:
            if self._folders.get(run.folder, {}).get(run.text) is run:
                self._drop(run)

    def asked(self, hashes: Sequence[bytes], priority: int) -> None:
        """A chain is used now; which files are, `used` tells next."""
        with self.lock:
            self.forgetting.asked(hashes, priority)

    def used(self, run: StoredRun, used_ns: int) -> None:
        """A file was used."""
        with self.lock:
            self.newest_ns = max(self.newest_ns, used_ns)
            run.used_ns = used_ns
            if self._folders.get(run.folder, {}).get(run.text) is run:
                self.forgetting.used(run)

    def evict(self, excess: int, kept: Iterable[FileId]) -> int | None:
        """Delete files of `excess` bytes, but for `kept` and what they continue; returns how many. Needs the lock.

        None, with nothing deleted, where that is not enough.
        """
        if excess <= 0:
            return 0
        with self.lock:
            protected = lineages(self._by_id.get(file_id) for file_id in kept)
            if excess > self.num_bytes - sum(run.num_bytes for run in protected):
                return None
            self.forgetting.hear()
            left, num_evicted = self.num_bytes - excess, 0
            while self.num_bytes > left:
                run = self._victim(lambda run: run.num_children == 0 and run not in protected)
                if run is None:
                    return None
                if remove_file(run.path):
                    self._drop(run)
                    num_evicted += 1
                else:
                    protected.add(run)
            return num_evicted

    def _victim(self, can_go: Callable[[StoredRun], bool]) -> StoredRun | None:
        """What goes next: an orphan, or what the policy says, if no other process has used it meanwhile."""
        orphans = (run for runs in self._waiting.values() for run in runs if can_go(run))
        if orphan := next(orphans, None):
            return orphan
        while True:
            run = self.forgetting.victim(self._all, can_go)
            if run is None:
                return None
            try:
                used_ns = run.path.stat(follow_symlinks=False).st_mtime_ns
            except OSError:
                return run  # it is gone already, or can't be looked at
            if used_ns <= run.used_ns:
                return run
            self.used(run, used_ns)

    def _all(self) -> Iterator[StoredRun]:
        return (run for files in self._folders.values() for run in files.values())

    @uncollected()
    def _list(self, folder: Path, entries: Iterable[os.DirEntry[str]], *, is_locked: bool = False) -> None:
        """Bring what is known of a folder up to date; with the lock, delete what is of no use there."""
        known = self._folders.get(folder, {})
        gone = set(known)
        new: list[StoredRun] = []
        for entry in entries:
            if entry.name in known:
                gone.discard(entry.name)
            elif is_locked and (entry.name.endswith(TEMPORARY) or is_old_name(entry.name)):
                remove_file(folder / entry.name)
            elif name := EntryName.parse(entry.name):
                with suppress(FileNotFoundError):
                    if not entry.is_dir(follow_symlinks=False):
                        stat = entry.stat(follow_symlinks=False)
                        new.append(StoredRun(folder, entry.name, name, stat.st_size, stat.st_mtime_ns))
        for text in gone:
            self._drop(known[text])
        for run in sorted(new, key=lambda run: run.used_ns):
            self._put(run)
        self._stamps.pop(folder, None)  # what was seen is told by whoever lists

    def _put(self, run: StoredRun) -> None:
        self._folders.setdefault(run.folder, {})[run.text] = run
        file_id = run.file_id
        self._by_id[file_id] = run
        self.num_bytes += run.num_bytes
        self.newest_ns = max(self.newest_ns, run.used_ns)
        for child in self._waiting.pop(file_id, ()):
            child.parent = run
            run.num_children += 1
        if run.name.parent != NO_PARENT:
            above = run.folder.name, run.name.parent
            run.parent = self._by_id.get(above)
            if run.parent is None:
                self._waiting.setdefault(above, {})[run] = None
            else:
                run.parent.num_children += 1
        self.forgetting.added(run)
        if run.folder == self._own:
            self._watcher.added(run)

    def _drop(self, run: StoredRun | None) -> None:
        if run is None:
            return
        files = self._folders[run.folder]
        del files[run.text]
        if not files:
            del self._folders[run.folder]
        self.num_bytes -= run.num_bytes
        if self._by_id.get(run.file_id) is run:
            del self._by_id[run.file_id]
        above = run.folder.name, run.name.parent
        if run.parent:
            run.parent.num_children -= 1
        elif above in self._waiting:
            self._waiting[above].pop(run, None)
            if not self._waiting[above]:
                del self._waiting[above]
        self.forgetting.removed(run)
        for child in list(files.values()) if run.num_children else ():
            if child.parent is run:  # it waits for another one of that key
                child.parent = None
                self._waiting.setdefault(run.file_id, {})[child] = None
        if run.folder == self._own:
            self._watcher.removed(run)


def _stamp(folder: Path) -> _Stamp:
    stat = folder.lstat()
    return stat.st_ino, stat.st_mtime_ns
