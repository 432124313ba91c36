"""Python code of a template in which what Jinja would leave to Python goes through the environment. Counts nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame


class BoundedCode(CodeGenerator):
    """Calls the environment's `counted`, `weighed`, `compared`, `cut` and `chained` where values are made and walked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wrapped: dict[int, tuple[nodes.Node, str]] = {}

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        _, name = self._wrapped.pop(id(node), (node, ""))
        if not name:
            return super().visit(node, *args, **kwargs)
        self.write(f"environment.{name}(")
        super().visit(node, *args, **kwargs)
        self.write(")")
        return None

    def _wrap(self, name: str, *parts: nodes.Node) -> None:
        """Have these go through the environment's `name` when they are visited."""
        self._wrapped |= {id(part): (part, name) for part in parts}

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        self._wrap("counted", node.iter)
        super().visit_For(node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._through("weighed", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._through("weighed", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._through("weighed", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        join = "markup_join" if frame.eval_ctx.autoescape else "str_join"
        if frame.eval_ctx.volatile:
            join = "(markup_join if context.eval_ctx.volatile else str_join)"
        self.write(f"environment.chained({join}, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.cut(")
        self.visit(node.node, frame)
        self.write(", slice(")
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            self.visit(bound, frame) if bound is not None else self.write("None")
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        searches = [operand.expr for operand in node.ops if operand.op in ("in", "notin")]
        parts = [node.expr, *(operand.expr for operand in node.ops)]
        if not searches and not any(isinstance(part, nodes.Const) for part in parts):
            searches = parts[:-1]
        self._wrap("compared", *searches)
        super().visit_Compare(node, frame)

    def _through(self, name: str, visit: Callable[..., None], node: nodes.Node, frame: Frame) -> None:
        self.write(f"environment.{name}(")
        visit(node, frame)
        self.write(")")
