"""The way to a node is the one that walking gives, and what two ways share is walked once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvchat.chat.way import Way


@dataclass(frozen=True, slots=True)
class Step:
    id: str
    parent: str | None
    text: str = ""


def walked(nodes: dict[str, Step], tip: str | None) -> tuple[Step, ...]:
    path: list[Step] = []
    while tip is not None:
        path.insert(0, nodes[tip])
        tip = nodes[tip].parent
    return tuple(path)


@given(moves=st.lists(st.tuples(st.sampled_from("gctr"), st.integers(0, 50)), max_size=40))
def test_the_way_is_what_walking_gives_whatever_was_asked_and_changed_before(
    moves: list[tuple[str, int]],
) -> None:
    nodes: dict[str, Step] = {}
    way = Way(nodes)
    for at, (move, number) in enumerate(moves):
        ids = [None, *nodes]
        chosen = ids[number % len(ids)]
        if move == "g":
            nodes[str(at)] = Step(str(at), chosen)
        elif move == "c" and chosen:
            nodes[chosen] = Step(chosen, nodes[chosen].parent, f"changed {at}")
            way.replace(nodes[chosen])
        elif move == "r" and chosen and all(node.parent != chosen for node in nodes.values()):
            del nodes[chosen]
            way.remove(chosen)
        tip = chosen if chosen in nodes else None
        assert way.to(tip) == walked(nodes, tip)


def test_a_way_that_grew_is_walked_from_where_it_grew() -> None:
    nodes = {str(n): Step(str(n), str(n - 1) if n else None) for n in range(100)}
    way = Way(nodes)
    way.to("89")
    for tip in ("90", "99", "95", "99"):
        way.to(tip)
    assert way.num_walked == 100 + 4


def test_a_node_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        Way({}).to("a")
