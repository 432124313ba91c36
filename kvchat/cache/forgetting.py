"""In which order stored files go, for all processes on one folder: the policy, fed from the files and from the log of uses.

What one process learned of its user the others read in the log (see `uses`). Of a file that stands in no log its time and
its place in the conversation count. Nothing is put in order before the first file has to go.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kvchat.cache.base import Policy
from kvchat.cache.entry import EntryError
from kvchat.cache.folder import NOTE_NAME, StoredFile, rooted_files
from kvchat.cache.ownership import read_own
from kvchat.cache.policy import LeastRecentlyUsed
from kvchat.cache.rates import Rates, Tip, Use, unlogged_tip
from kvchat.cache.run import StoredRun
from kvchat.cache.uses import MOST_USES, UseLog
from kvchat.cache.worth import SHARED, Cost, Worth

MAX_NOTE_BYTES = 2**16
USUAL_DISK_BYTES_PER_S = 5e8
_UNLOGGED_S = 60.0
"""A file that was used so much later than the log says was used by somebody who does not write it."""
_LEAST_TOKEN_S, _MOST_TOKEN_S = 1e-7, 60.0


class Forgetting:
    """Which file is to go next. Not safe for threads."""

    def __init__(self, root: Path, policy: str) -> None:
        """`policy` is `kvchat` or `lru`, which needs no log."""
        self._log = UseLog(root) if policy == "kvchat" else None
        self._rates: Rates | None = None
        self._policy: Policy | None = None
        self._worth: Worth | None = None
        self._costs: dict[Path, Cost] = {}

    @property
    def is_long(self) -> bool:
        """Whether the log should be made shorter."""
        return self._log is not None and self._log.num_records > 2 * MOST_USES

    def asked(self, hashes: Sequence[bytes], priority: int) -> None:
        """Learn, and tell all, that a chain is used now; which files are, `used` tells next."""
        if self._log is None or not hashes:
            return
        self.hear()
        use = self._known().seen(hashes, time.time(), is_shared=priority == SHARED)
        if self._log.append(use):
            self.hear()
        else:
            self._heard([use])

    def hear(self) -> None:
        """Learn what was used since, by whichever process."""
        if self._log:
            self._heard(self._log.new())

    def learned(self) -> Rates | None:
        """What the log teaches about when conversations are gone on with, for another tier; None without a log."""
        if self._log is None:
            return None
        rates = Rates()
        rates.take_all(UseLog(self._log.root).new()[-MOST_USES:], time.time())
        return rates

    def added(self, run: StoredRun) -> None:
        """A file is there."""
        if self._policy:
            self._policy.added(run)

    def used(self, run: StoredRun) -> None:
        """A file was used, at its `used_ns`."""
        if self._policy:
            self._policy.used(run)

    def removed(self, run: StoredRun) -> None:
        """A file is gone; its parent has one child less already."""
        if self._policy:
            self._policy.removed(run)

    def victim(
        self, runs: Callable[[], Iterable[StoredRun]], can_go: Callable[[StoredRun], bool]
    ) -> StoredRun | None:
        """The file that goes next, of those that can; `runs` are all, as they are when the first one has to go."""
        if self._policy is None:
            self._policy = self._made()
            # By worth only leaves stand in the order; what they continue is taken in once they are gone.
            first = (run for run in runs() if self._worth is None or not run.num_children)
            for each in sorted(first, key=lambda run: run.used_ns):
                self._policy.added(each)
        run: StoredRun | None = self._policy.victim(can_go)
        return run

    def _made(self) -> Policy:
        if self._log is None:
            return LeastRecentlyUsed()
        self._worth = Worth(cost_of=self._saved_s, rates=self._known(), clock=_now_s, told=self._told)
        return self._worth

    def _known(self) -> Rates:
        if self._rates is None:
            self._rates = Rates()
        return self._rates

    def _heard(self, uses: Sequence[Use]) -> None:
        if self._worth is None:
            self._known().take_all(uses, time.time())
            return
        for use in uses:
            self._worth.heard(use)

    def _told(self, run: StoredRun) -> tuple[int, Tip]:
        """When a file was used last, and by which chain."""
        used_s = run.used_ns / 1e9
        tip = self._known().tip_of(bytes.fromhex(run.name.last))
        if tip is None:
            is_later = run.name.start > 0
            tip = unlogged_tip(used_s, is_later=is_later, is_shared=run.priority == SHARED)
        elif used_s > tip.used_s + _UNLOGGED_S:
            tip = tip.again(used_s)
        return run.used_ns, tip

    def _saved_s(self, run: StoredRun) -> float:
        """Seconds that a file saves when it is needed."""
        first = 0 if run.is_state else run.name.start
        cost = self._costs.get(run.folder) or self._costs.setdefault(run.folder, _cost(run.folder))
        return cost.saved(first, max(first + 1, run.name.end), run.num_bytes)


def eviction_order(files: Iterable[StoredFile], root: Path, policy: str = "kvchat") -> Iterator[StoredFile]:
    """All files in the order in which they go now: orphans, then leaf after leaf as the policy says."""
    by_id = {file.id: file for file in files}
    rooted = rooted_files(by_id.values())
    yield from (file for id_, file in by_id.items() if id_ not in rooted)
    runs = {id_: StoredRun(file.folder, str(file.name), *file[1:]) for id_, file in rooted.items()}
    for id_, each in runs.items():
        each.parent = runs.get(rooted[id_].parent_id)
        if each.parent:
            each.parent.num_children += 1
    forgetting = Forgetting(root, policy)
    forgetting.hear()
    while run := forgetting.victim(runs.values, lambda run: run.num_children == 0):
        if run.parent:
            run.parent.num_children -= 1
        forgetting.removed(run)
        yield rooted[run.file_id]


def _cost(folder: Path) -> Cost:
    """What computing a token takes with a folder's model, if its user noted that as `token_s`."""
    cost = Cost(bytes_per_s=USUAL_DISK_BYTES_PER_S)
    try:
        token_s = json.loads(read_own(folder / NOTE_NAME, MAX_NOTE_BYTES))["token_s"]
    except (OSError, EntryError, ValueError, LookupError, TypeError, RecursionError):
        return cost
    is_cost = isinstance(token_s, int | float) and _LEAST_TOKEN_S <= token_s <= _MOST_TOKEN_S
    return replace(cost, token_s=float(token_s)) if is_cost else cost


def _now_s() -> float:
    return time.time()
