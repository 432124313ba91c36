"""The bar that one-shot mode and the catalog's commands show on stderr while something long goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from kvchat.backends.base import Backend, Phase, Prefilling, Status
from kvchat.ui.clean import CleanStream, raw, sanitize

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DELAY_S = 0.4
"""A wait shorter than this shows no bar."""


class WaitingBar:
    """Shows loading and prefill of a backend until the first text; a context manager, once an answer.

    Draws from a thread of its own, because the caller waits inside the backend. Does nothing unless `shown`.
    """

    def __init__(self, backend: Backend, stderr: TextIO | CleanStream, *, shown: bool) -> None:
        self._backend = backend
        self._stderr = stderr
        self._shown = shown
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._prefill: Prefilling | None = None

    def __enter__(self) -> WaitingBar:
        self._over.clear()
        self._prefill = None
        if self._shown:
            self._thread = threading.Thread(target=self._draw, name="waiting-bar", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def prefilling(self, event: Prefilling) -> None:
        """Show this progress from now on."""
        self._prefill = event

    def stop(self) -> None:
        """Take the bar away before something else is written."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _draw(self) -> None:
        if self._over.wait(DELAY_S):
            return
        with progress_bar(self._stderr) as bar:
            task = bar.add_task("waiting", total=None)
            while not self._over.wait(0.1):
                self._update(bar, task)

    def _update(self, bar: Progress, task: TaskID) -> None:
        status, prefill = self._backend.status(), self._prefill
        if prefill is not None and status.phase is Phase.PREFILLING:
            status = Status(Phase.PREFILLING, "", prefill.done, prefill.total)
        label = sanitize(status.detail or str(status.phase))
        bar.update(task, description=label, completed=status.done, total=status.total or None)


def progress_bar(stderr: TextIO | CleanStream) -> Progress:
    """A bar that leaves no line behind."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(30),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=raw(stderr)), transient=True)


@contextmanager
def stage_bar(stderr: TextIO, *, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar that is told `(stage, done, total)`; `total` 0 means unknown. Does nothing unless `shown`."""
    if not shown:
        yield lambda stage, done, total: None
        return
    with progress_bar(stderr) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage, done, total: bar.update(
            task, description=sanitize(stage), completed=done, total=total or None
        )
