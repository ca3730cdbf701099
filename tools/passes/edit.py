"""Changes a graph while keeping track of who writes and reads each tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from evort.graph import Graph, Node, Tensor
from evort.ops.base import find
from evort.types import STORAGE, DType, dtype_of
from evort_tools.importer.builder import Names
from evort_tools.passes.shapes import Shapes

_REAL = frozenset({DType.FLOAT, DType.DOUBLE, DType.FLOAT16})


class Context:
    """What passes share: the model's outermost graph, facts of all tensors, names, and limits on what folding may add
    to the file (bytes)."""

    def __init__(self, top: Graph, shapes: Shapes, names: Names, fold_limit: int = 1 << 20, fill_limit: int = 1 << 16):
        self.top = top
        self.shapes = shapes
        self.names = names
        self.fold_limit = fold_limit
        self.fill_limit = fill_limit
        # Whether DequantizeLinear of constants may be computed: not before the pass `integers` has seen it.
        self.fold_weights = False


class Edit:
    """One graph under change. Names that nested graphs take from this one count as read by the node that holds them.

    A node that nothing reads any more after a change is dropped at once (`prune`), with what only it read.
    """

    def __init__(self, graph: Graph, ctx: Context):
        self.graph = graph
        self.ctx = ctx
        self.shapes = ctx.shapes
        self.outputs = set(graph.outputs)
        self.writer: dict[str, Node] = {}
        self.readers: dict[str, list[Node]] = {}
        self.captured: set[str] = set()
        for node in graph.nodes:
            self._link(node)

    # Questions

    def nodes(self) -> Iterator[Node]:
        """The ONNX nodes that are there at the start, each where no change on behalf of an earlier one dropped it."""
        for node in list(self.graph.nodes):
            if not node.domain and node.outputs and self.writer.get(node.outputs[0]) is node:
                yield node

    def producer(self, name: str, *ops: str) -> Node | None:
        """The node of this graph that writes a tensor; with `ops`, only where it is one of these ONNX operators."""
        node = self.writer.get(name)
        if node is None or (ops and (node.op not in ops or node.domain)):
            return None
        return node

    def users(self, name: str) -> list[Node]:
        """Nodes that read a tensor, each as often as it does."""
        return self.readers.get(name, [])

    def only_user(self, name: str) -> Node | None:
        """The node that reads a tensor, where that is the tensor's only use."""
        users = self.users(name)
        if len(users) != 1 or name in self.outputs or name in self.captured:
            return None
        return users[0]

    def single(self, name: str) -> bool:
        """Whether a tensor has exactly one use."""
        return self.only_user(name) is not None

    def read_once(self, name: str) -> bool:
        """Whether one node reads a tensor's elements; others may look at its shape."""
        readers = [n for n in self.users(name) if n.op != "Shape" or n.domain]
        return len(readers) == 1 and name not in self.outputs and name not in self.captured

    def value(self, name: str) -> np.ndarray | None:
        """The value of a constant, as stored."""
        return self.shapes.value(name) if name else None

    def real(self, name: str) -> np.ndarray | None:
        """The value of a constant of float32, float64 or float16."""
        return self.value(name) if name and self.shapes.dtype(name) in _REAL else None

    def scalar(self, name: str, like: str = "") -> float | None:
        """A one-element real constant that does not raise the rank of `like`, as a float."""
        value = self.real(name)
        if value is None or value.size != 1:
            return None
        if value.ndim and like:
            rank = self.shapes.rank(like)
            if rank is None or value.ndim > rank:
                return None
        return float(value.reshape(-1)[0])

    def is_real(self, name: str) -> bool:
        return self.shapes.dtype(name) in _REAL

    # Changes

    def constant(self, value: np.ndarray, hint: str, dtype: DType | None = None) -> str:
        """Adds a constant; returns its name."""
        dtype = dtype_of(value) if dtype is None else dtype
        name = self.ctx.names.fresh(hint)
        array = np.ascontiguousarray(value, STORAGE[dtype]).reshape(value.shape)
        self.shapes.constant(self.graph.tensors[self.graph.add(Tensor(name, dtype, value.shape, array))])
        return name

    def insert(self, before: Node, op: str, inputs: Sequence[str], attrs: dict[str, Any] | None = None,
               hint: str = "", domain: str = "") -> str:  # fmt: skip
        """Adds a node with one output before another; returns the output's name."""
        return self.insert_node(before, op, inputs, 1, attrs, hint, domain).outputs[0]

    def insert_node(self, before: Node, op: str, inputs: Sequence[str], outputs: int,
                    attrs: dict[str, Any] | None = None, hint: str = "", domain: str = "") -> Node:  # fmt: skip
        """Adds a node with so many outputs before another. Trailing absent inputs are dropped."""
        names = [self.ctx.names.fresh(hint or f"{before.outputs[0]}/{op}") for _ in range(outputs)]
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        node = Node(op, given, names, dict(attrs or {}), domain, before.name)
        self.graph.nodes.insert(self.graph.nodes.index(before), node)
        self._link(node)
        self.shapes.infer(node, self.graph is self.ctx.top)
        return node

    def change(self, node: Node, op: str, inputs: Sequence[str], attrs: dict[str, Any] | None = None) -> None:
        """Makes a node compute its outputs by another operator or from other inputs. Default attributes are dropped."""
        before = list(node.inputs)
        self._unlink(node)
        definition = find(op, "")
        node.op, node.domain, node.inputs = op, "", list(inputs)
        while node.inputs and not node.inputs[-1]:
            node.inputs.pop()
        known = definition.attrs if definition is not None else {}
        node.attrs = {k: v for k, v in (attrs or {}).items() if k not in known or known[k].default != v}
        self._link(node)
        for name in before:
            self.prune(name)

    def set_input(self, node: Node, index: int, name: str) -> None:
        """Replaces one input."""
        inputs = [*node.inputs, *[""] * (index + 1 - len(node.inputs))]
        inputs[index] = name
        before = list(node.inputs)
        self._unlink(node)
        node.inputs = inputs
        self._link(node)
        for old in before:
            self.prune(old)

    def replace_uses(self, old: str, new: str) -> None:
        """Lets all readers of a tensor read another; the graph's outputs stay as they are."""
        for node in dict.fromkeys(self.users(old)):
            self._unlink(node)
            _rename_reads(node, old, new)
            self._link(node)

    def bypass(self, node: Node, source: str, index: int = 0) -> bool:
        """Puts `source` in the place of a node's output, which it equals. Where the output is the graph's, its name
        moves to what computes `source`, or else the node becomes an Identity. Returns whether anything changed."""
        out = node.outputs[index]
        if out in self.outputs:
            writer = self.writer.get(source)
            if writer is None or source in self.outputs or writer is node:
                if node.op == "Identity" and not node.domain:
                    return False
                self.change(node, "Identity", [source])
                node.outputs = [out]
                return True
            self.remove(node)
            at = writer.outputs.index(source)
            self._unlink(writer)
            writer.outputs[at] = out
            self._link(writer)
            self.replace_uses(source, out)
            for name in node.inputs:
                self.prune(name)
            return True
        self.replace_uses(out, source)
        self.prune(out)
        return True

    def rename(self, old: str, new: str) -> bool:
        """Gives a tensor between nodes a name that nothing has any more. Returns whether it could."""
        taken = new in self.writer or new in self.outputs or bool(self.users(new))
        if taken or old not in self.writer or old in self.outputs or old in self.captured:
            return False
        writer = self.writer[old]
        at = writer.outputs.index(old)
        self._unlink(writer)
        writer.outputs[at] = new
        self._link(writer)
        self.replace_uses(old, new)
        self.shapes.facts[new] = self.shapes.facts.pop(old)
        self.graph.tensors.pop(new, None)
        return True

    def remove(self, node: Node) -> None:
        """Takes a node out; its outputs are no longer written by it."""
        self._unlink(node)
        self.graph.nodes.remove(node)

    def prune(self, name: str) -> None:
        """Drops the node that writes a tensor, if nothing reads any of its outputs, and then what only it read."""
        pending = [name]
        while pending:
            node = self.writer.get(pending.pop())
            if node is None or any(o in self.outputs or self.users(o) for o in node.outputs if o):
                continue
            self.remove(node)
            pending += [*node.inputs, *(n for sub in node.subgraphs() for n in sub.free_names())]

    # Index

    def _link(self, node: Node) -> None:
        for name in node.outputs:
            if name:
                self.writer[name] = node
        for name in node.inputs:
            if name:
                self.readers.setdefault(name, []).append(node)
        for sub in node.subgraphs():
            for name in sub.free_names():
                self.readers.setdefault(name, []).append(node)
                self.captured.add(name)

    def _unlink(self, node: Node) -> None:
        for name in node.outputs:
            if self.writer.get(name) is node:
                del self.writer[name]
        for name in (*node.inputs, *(n for sub in node.subgraphs() for n in sub.free_names())):
            if name:
                self.readers[name].remove(node)


def _rename_reads(node: Node, old: str, new: str) -> None:
    node.inputs = [new if name == old else name for name in node.inputs]
    for sub in node.subgraphs():
        rename_free(sub, old, new)


def rename_free(graph: Graph, old: str, new: str) -> None:
    """Renames a name that a nested graph takes from around it."""
    for node in graph.nodes:
        _rename_reads(node, old, new)
    graph.outputs = [new if name == old else name for name in graph.outputs]
