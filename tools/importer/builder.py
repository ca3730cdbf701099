"""What a rewriting rule works with: it gets a node in its old form and emits nodes in the newest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evort.graph import Dim, Graph, Node, Tensor
from evort.types import DType, dtype_of

if TYPE_CHECKING:
    from evort_tools.passes.shapes import Shapes


class Refused(Exception):
    """A node that has no newest form; the message says why."""


class Names:
    """Hands out names that occur nowhere else in the model, nested graphs included."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def reserve(self, name: str) -> None:
        self.taken.add(name)

    def fresh(self, hint: str) -> str:
        """`hint`, or `hint_1`, `hint_2`, ... where that is taken."""
        name, number = hint, 0
        while name in self.taken:
            number += 1
            name = f"{hint}_{number}"
        self.taken.add(name)
        return name


class Builder:
    """Emits nodes and constants into one graph in place of one node. `opset`: the version that the node is in."""

    def __init__(
        self, graph: Graph, names: Names, shapes: Shapes, node: Node, opset: int, add: Callable[[Graph, Node], None]
    ):
        self.graph = graph
        self.names = names
        self.shapes = shapes
        self.node = node
        self.opset = opset
        self._add = add
        self._hint = next((o for o in node.outputs if o), node.name or node.op)

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        attrs: dict[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
        domain: str = "",
    ) -> str:
        """Adds a node and returns its first output's name. outputs: names, else one fresh one."""
        inputs = list(inputs)
        while inputs and not inputs[-1]:
            inputs.pop()
        outs = [self.names.fresh(f"{self._hint}/{op}")] if outputs is None else list(outputs)
        attrs = {key: value for key, value in (attrs or {}).items() if value is not None}
        self._add(self.graph, Node(op, inputs, outs, attrs, domain, self.node.name))
        return outs[0]

    def finish(self, op: str, inputs: Sequence[str], attrs: dict[str, Any] | None = None) -> None:
        """Adds the node that gives the outputs of the one that is rewritten."""
        self.emit(op, inputs, attrs, self.node.outputs)

    def constant(self, value: Any, dtype: DType | None = None, hint: str = "constant") -> str:
        """A constant's name. dtype: where the NumPy dtype does not tell it."""
        value = np.asarray(value)
        name = self.names.fresh(f"{self._hint}/{hint}")
        tensor = Tensor(name, dtype_of(value) if dtype is None else dtype, value.shape, value)
        self.graph.add(tensor)
        self.shapes.constant(tensor)
        return name

    def ints(self, values: Sequence[int] | None, hint: str = "ints") -> str:
        """A constant int64 vector, or "" for None."""
        return "" if values is None else self.constant(np.array(list(values), np.int64), hint=hint)

    def like(self, value: float, name: str, hint: str) -> str:
        """A constant scalar of a tensor's element type."""
        dtype = self.dtype(name)
        if dtype in (None, DType.FLOAT):
            plain = self.constant(np.array(value, np.float32), hint=hint)
            return plain if dtype == DType.FLOAT else self.emit("CastLike", [plain, name])
        plain = self.constant(np.array(value, np.float64), hint=hint)
        return plain if dtype == DType.DOUBLE else self.emit("Cast", [plain], {"to": int(dtype)})

    def input(self, index: int) -> str:
        """The name of the node's input, "" where it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else ""

    def wants(self, index: int) -> bool:
        """Whether something reads the node's output."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index])

    def value(self, name: str) -> np.ndarray | None:
        """A tensor's value where it is a constant."""
        return self.shapes.value(name) if name else None

    def dtype(self, name: str) -> DType | None:
        return self.shapes.dtype(name)

    def dims(self, name: str) -> tuple[Dim, ...] | None:
        """A tensor's shape, None where even its rank is unknown."""
        return self.shapes.shape(name)

    def rank(self, name: str) -> int | None:
        dims = self.dims(name)
        return None if dims is None else len(dims)

    def refuse(self, why: str) -> Refused:
        """An exception to raise."""
        return Refused(why)
