"""The moments between two layers of a forward: whether it goes on is asked there, and how far it came is told. Knows no tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):  # noqa: N818  # nothing went wrong
    """A forward ended between two layers, because it was to."""


def _unheard(num_layers: int) -> None:
    """Nobody listens."""


class Pauses:
    """Of one network, whose forward calls `pause` before each layer. One thread owns it."""

    def __init__(self) -> None:
        self._is_cancelled: Callable[[], bool] | None = None
        self._tell: Callable[[int], None] = _unheard
        self._num_begun = 0

    @contextmanager
    def asking(
        self, is_cancelled: Callable[[], bool] | None, tell: Callable[[int], None] = _unheard
    ) -> Iterator[None]:
        """Forwards in here raise Interrupted once they are cancelled, and `tell` how many layers they have begun. Whoever is
        told may run another forward meanwhile."""
        before = self._is_cancelled, self._tell, self._num_begun
        self._is_cancelled, self._tell, self._num_begun = is_cancelled, tell, 0
        try:
            yield
        finally:
            self._is_cancelled, self._tell, self._num_begun = before

    def pause(self) -> None:
        """A layer is to begin. Raises Interrupted."""
        if self._is_cancelled is None:
            return
        if self._is_cancelled():
            raise Interrupted
        self._num_begun += 1
        self._tell(self._num_begun)
