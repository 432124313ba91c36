"""A template's source cut into steps, one a message, where each can be written once for all. Knows no message.

Most templates are one loop over the messages. Where nothing that a pass of it writes depends on how many messages follow,
or on what the passes before it left behind, a longer conversation's text begins with what was written already. That is
read from the syntax; what messages a pass looks at is seen as it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, nodes
from jinja2.visitor import NodeTransformer

MARK = "\uf8fc\uf8fd"
"""Stands behind each step: a placeholder without a number, which no message can hold."""

_ALLOWED = frozenset(("index", "index0", "first", "last", "nextitem"))
_AHEAD = frozenset(("last", "nextitem"))
_STATEFUL = frozenset(("cycler", "joiner"))
_REFUSED = (
    nodes.Block,
    nodes.Include,
    nodes.Extends,
    nodes.Import,
    nodes.FromImport,
    nodes.NSRef,
    nodes.EvalContextModifier,
    nodes.Break,
    nodes.Continue,
)
_MESSAGES, _FIRST, _ITER = "messages", "first_step", "steps"


@dataclass(frozen=True, slots=True)
class Steps:
    """What a template writes before all messages, for each from some message on, and behind them all.

    What it writes for a message depends on none that comes more than `reach` behind it.
    """

    before: str
    steps: list[str]
    after: str
    reach: int

    @classmethod
    def of(cls, text: str, looked: Looked) -> Steps | None:
        """The steps in a text; None where it can't be told what they depend on."""
        before, *steps = text.split(MARK)
        if looked.is_unsure or len(steps) != looked.num_steps + 1:
            return None
        return cls(before, steps[:-1], steps[-1], looked.reach)


class Looked:
    """The messages as one rendering from message `first` on sees them: one by one, or by their number."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], first: int, ahead: int) -> None:
        self.reach = ahead
        self.is_unsure = False
        self.num_steps = len(messages) - first
        self._messages = messages
        self._first = first
        self._ahead = ahead
        self._at: int | None = 0  # the pass of the loop that may be running; None behind it

    def __getitem__(self, number: Any) -> Mapping[str, Any]:
        if self._at is not None:
            is_known = type(number) is int and number >= 0
            self.is_unsure = self.is_unsure or not is_known
            self.reach = max(self.reach, number - self._at if is_known else 0)
        found: Mapping[str, Any] = self._messages[number]
        return found

    def steps(self) -> Iterator[Mapping[str, Any]]:
        """The messages that the loop goes over. Who asks for the next early may still be with the one before."""
        for number in range(self._first, len(self._messages)):
            self._at = max(0, number - self._ahead)
            yield self._messages[number]
        self._at = None


@dataclass(frozen=True, slots=True)
class StepSource:
    """A template that goes over `steps`, and how many messages `ahead` each of them may look by the loop itself."""

    tree: nodes.Template
    ahead: int


def in_steps(environment: Environment, source: str) -> StepSource | None:
    """The template in steps; None where it can't be cut into any."""
    if MARK[0] in source or MARK[1] in source:
        return None
    tree = environment.parse(source)
    loops = [node for node in tree.body if isinstance(node, nodes.For)]
    if len(loops) != 1 or not _is_over_messages(loops[0]) or _is_refused(tree, loops[0]):
        return None
    (loop,) = loops
    shifted = _Shifted()
    mark = nodes.Output([nodes.TemplateData(MARK)])
    loop.body = [*(shifted.visit(node) for node in loop.body), mark]
    loop.iter = nodes.Name(_ITER, "load")
    at = tree.body.index(loop)
    tree.body = [*tree.body[:at], mark, *tree.body[at:]]
    tree.set_environment(environment)
    return None if shifted.is_unsure else StepSource(tree, shifted.ahead)


def _is_over_messages(loop: nodes.For) -> bool:
    is_plain = not (loop.else_ or loop.test or loop.recursive) and isinstance(loop.target, nodes.Name)
    return is_plain and isinstance(loop.iter, nodes.Name) and loop.iter.name == _MESSAGES


def _is_refused(tree: nodes.Template, loop: nodes.For) -> bool:
    """Whether something in it may carry what one pass knows into another, or looks at all messages together."""
    if any(True for _ in tree.find_all(_REFUSED)):
        return True
    names = list(tree.find_all(nodes.Name))
    if any(name.name in _STATEFUL | {_FIRST, _ITER} for name in names):
        return True
    looked = {id(item.node) for item in tree.find_all(nodes.Getitem) if not isinstance(item.arg, nodes.Slice)}
    uses = (name for name in names if name.name == _MESSAGES and name is not loop.iter)
    if any(id(name) not in looked or name.ctx != "load" for name in uses):
        return True
    inside = {id(name) for name in loop.find_all(nodes.Name)}
    return any(name.name == "loop" and id(name) not in inside for name in names)


class _Shifted(NodeTransformer):
    """What a pass of the outer loop knows of its number, counted from the first message on though it began later."""

    def __init__(self) -> None:
        self.ahead = 0
        self.is_unsure = False

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        """An inner loop has a `loop` of its own."""
        node.iter = self.visit(node.iter)
        node.else_ = [self.visit(each) for each in node.else_]
        return node

    def visit_Name(self, node: nodes.Name) -> nodes.Name:  # noqa: N802
        """The loop itself, for something else than its attributes."""
        self.is_unsure = self.is_unsure or node.name == "loop"
        return node

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:  # noqa: N802
        if not (isinstance(node.node, nodes.Name) and node.node.name == "loop"):
            return self.generic_visit(node)
        self.is_unsure = self.is_unsure or node.attr not in _ALLOWED
        self.ahead = max(self.ahead, int(node.attr in _AHEAD))
        if node.attr in _AHEAD:
            return node
        name = "index" if node.attr == "index" else "index0"
        shifted = nodes.Add(nodes.Getattr(node.node, name, "load"), nodes.Name(_FIRST, "load"))
        return (
            nodes.Compare(shifted, [nodes.Operand("eq", nodes.Const(0))]) if node.attr == "first" else shifted
        )
