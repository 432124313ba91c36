"""The way from a tree's root to one of its nodes, remembered from one look to the next. Knows nothing of what they hold."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar


class Node(Protocol):
    """What stands in a tree. Under the same `id` there is never another `parent`."""

    @property
    def id(self) -> str:
        """What it is called."""

    @property
    def parent(self) -> str | None:
        """The node before it; None for a root."""


N = TypeVar("N", bound=Node)


class Way(Generic[N]):
    """The path that was asked for last: another one is walked only up to where it meets that. From any thread."""

    def __init__(self, nodes: Mapping[str, N]) -> None:
        self.num_walked = 0
        """Nodes that were walked over."""
        self._nodes = nodes
        self._path: list[N] = []
        self._places: dict[str, int] = {}
        self._lock = threading.Lock()

    def to(self, tip: str | None) -> tuple[N, ...]:
        """The nodes from the root to `tip`. Raises KeyError for one that is not there."""
        with self._lock:
            new: list[N] = []
            while tip is not None and tip not in self._places:
                new.append(self._nodes[tip])
                tip = new[-1].parent
            self._cut(0 if tip is None else self._places[tip] + 1)
            self.num_walked += len(new)
            for node in reversed(new):
                self._places[node.id] = len(self._path)
                self._path.append(node)
            return tuple(self._path)

    def replace(self, node: N) -> None:
        """Another node stands where one with its id stood."""
        with self._lock:
            if node.id in self._places:
                self._path[self._places[node.id]] = node

    def remove(self, node_id: str) -> None:
        """There is no node with this id any more."""
        with self._lock:
            if node_id in self._places:
                self._cut(self._places[node_id])

    def _cut(self, length: int) -> None:
        for node in self._path[length:]:
            del self._places[node.id]
        del self._path[length:]
