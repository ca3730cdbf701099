"""Which nodes of a float graph run in integers, which of its tensors are quantized for that, and which share a scale.

    products        Conv, ConvTranspose, Gemm, MatMul: whenever their weights are constant (or both operands are not)
    tables          of a trilinear lookup, for their size; the image goes on as it comes
    light operators Add, Mul, Concat, pools, activation functions, normalizations, Softmax, Resize: only between
                    operators that run in integers anyway, since by themselves they take no longer in float than the
                    conversions would
    moves           MaxPool, Reshape, Transpose, ...: integers pass through as they are, with one scale before and after

All else stays in float, with the reason noted. A tensor is quantized where an operator in integers reads it; one that
only float operators read is written in float by whoever computes it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

import numpy as np

from evort.graph import Graph, Node
from evort.types import DType
from evort_tools.passes.shapes import Shapes

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Elementwise functions of one tensor, which become a table of 256 entries between two quantized tensors.
UNARY = frozenset({
    "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Sigmoid", "Softplus",
    "Swish", "Tanh",
})  # fmt: skip
# What needs more than 8 bits of its input or output to be as good as in float, so that the error decides.
DELICATE = frozenset({"LayerNormalization", "Softmax"})
LIGHT = UNARY | DELICATE | {
    "Add", "AveragePool", "BatchNormalization", "Concat", "GlobalAveragePool", "Mul", "ReduceMean", "Resize",
}  # fmt: skip
TABLE = ("cus_ops", "tri_forward")
MOVES = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool", "Pad", "Reshape", "Resize",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
Z = 3  # the operand of a product that is added to it
# Functions of known range, as (least, largest).
FIXED = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}


def weight_axis(node: Node, w: np.ndarray) -> int | None:
    """The axis of a product's constant weights along which its output channels lie; None where one scale serves all."""
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1 if node.attrs.get("group", 1) == 1 else None
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return 1 if w.ndim == 2 else None


def is_table(node: Node) -> bool:
    """Whether a node looks numbers up in a table, which is its first operand."""
    return (node.domain, node.op) == TABLE


def moves(node: Node) -> bool:
    """Whether a node gives integers on as they are; a Resize only to the nearest."""
    return node.op in MOVES and (node.op != "Resize" or node.attrs.get("mode", "nearest") == "nearest")


def is_product(node: Node) -> bool:
    return node.op in PRODUCTS and not node.domain


def operand(node: Node, index: int) -> str:
    """An input's name, "" where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else ""


class Selection:
    """What of a graph is quantized.

    nodes: those that run in integers, moves included, in the graph's order. activations: tensors to encode, each with
    the root of its group; weights: constants to encode, with the product or lookup that reads them. kept: {label of a
    node: why it stays in float}, for those that could be thought to run in integers.
    """

    def __init__(self, graph: Graph, shapes: Shapes, exclude: Collection[str] = (), bad: Collection[str] = ()):
        """exclude: names or patterns (`*`, `?`) of nodes, of tensors that they write, or of operators. bad: tensors
        that cannot be quantized. Raises ValueError for an excluded name that fits nothing."""
        self.graph = graph
        self.shapes = shapes
        self.kept: dict[str, str] = {}
        self.writer = {o: node for node in graph.nodes for o in node.outputs if o}
        self.readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in dict.fromkeys(node.inputs):
                if name:
                    self.readers.setdefault(name, []).append(node)
        self._bad = frozenset(bad)
        self._excluded = self._match(exclude)
        self._floats: Mapping[str, str] = {}
        products = {id(n) for n in graph.nodes if is_product(n) and self._product(n)}
        self._choose(products | {id(n) for n in graph.nodes if is_table(n) and self._table(n)})

    def without(self, floats: Mapping[str, str]) -> Selection:
        """The same selection with more nodes in float: {first output: why, which `kept` says of products}. Light
        operators and moves that integers then no longer reach go with them."""
        new = copy.copy(self)
        left = [n for n in self.nodes if n.outputs[0] in floats and n.op in PRODUCTS]
        new.kept = {**self.kept, **{n.label(): floats[n.outputs[0]] for n in left}}
        new._floats = {**self._floats, **floats}
        heavy = [n for n in self.nodes if is_product(n) or is_table(n)]
        new._choose({id(n) for n in heavy if n.outputs[0] not in floats})
        return new

    def _choose(self, chosen: set[int]) -> None:
        """Fills in everything, from the products that run in integers."""
        self._add_light(chosen)
        self.nodes = [n for n in self.graph.nodes if id(n) in chosen]
        self._chosen = chosen
        self.weights: dict[str, Node] = {}
        self.activations: dict[str, str] = {}
        self._collect()

    # Which nodes

    def _match(self, patterns: Iterable[str]) -> set[int]:
        found: set[int] = set()
        for pattern in patterns:
            fits = {
                id(n)
                for n in self.graph.nodes
                if any(fnmatchcase(name, pattern) for name in (n.name, n.op, *n.outputs) if name)
            }
            if not fits:
                raise ValueError(f"nothing in the model is named {pattern!r} (a node, a tensor it writes, an operator)")
            found |= fits
        return found

    def _keep(self, node: Node, why: str) -> bool:
        self.kept[node.label()] = why
        return False

    def _constant(self, name: str) -> np.ndarray | None:
        return self.graph.constant(name) if name else None

    def _float(self, name: str) -> bool:
        return self.shapes.dtype(name) == DType.FLOAT

    def _barred(self, node: Node) -> bool:
        if id(node) in self._excluded:
            return not self._keep(node, "excluded")
        if node.outputs[0] in self._floats:
            return True
        bad = [n for n in (*node.inputs, *node.outputs) if n in self._bad]
        if bad:
            return not self._keep(node, f"{bad[0]!r} takes values that are NaN or infinite")
        return False

    def _product(self, node: Node) -> bool:
        """Whether a product runs in integers; if not, the reason is noted."""
        if self._barred(node):
            return False
        if not self._float(node.outputs[0]) or not all(self._float(n) for n in node.inputs[:2]):
            return self._keep(node, "its operands are not float32")
        if node.attrs.get("activation") == "PRelu":
            return self._keep(node, "its activation has a slope for each channel")
        w = self._constant(node.inputs[1])
        if w is None and node.op != "MatMul":
            return self._keep(node, "its weights are not constant")
        if w is not None and not np.isfinite(w).all():
            return self._keep(node, "its weights hold NaN or infinity")
        if self._constant(node.inputs[0]) is not None:
            return self._keep(node, "its first operand is constant")
        if node.op == "Gemm":
            plain = node.attrs.get("alpha", 1.0) == 1 and node.attrs.get("beta", 1.0) == 1
            if not plain or node.attrs.get("transA", 0):
                return self._keep(node, "its alpha, beta or transA is not the usual one")
        bias = operand(node, 2)
        if bias and self._constant(bias) is None:
            return self._keep(node, "its bias is not constant")
        if w is None and bias:
            return self._keep(node, "it has a bias beside two computed operands")
        if node.op in ("Conv", "ConvTranspose") and (self.shapes.rank(node.inputs[1]) or 9) > 5:
            return self._keep(node, "it has more than three spatial axes")
        return True

    def _table(self, node: Node) -> bool:
        """Whether a table is stored in integers."""
        table = self._constant(node.inputs[0])
        if self._barred(node) or not self._float(node.inputs[1]) or table is None or table.dtype != np.float32:
            return False
        return bool(np.isfinite(table).all()) or self._keep(node, "its table holds NaN or infinity")

    def data_inputs(self, node: Node) -> list[str]:
        """The tensors that a node in integers reads in integers (constants of Add and the like among them)."""
        if node.op in PRODUCTS:
            names = [node.inputs[0], *(n for n in node.inputs[1:2] if self._constant(n) is None)]
        elif is_table(node):
            names = []
        elif node.op in ("Add", "Mul", "Concat"):
            names = list(node.inputs)
        else:
            names = node.inputs[:1]
        return list(dict.fromkeys(names))

    def _can_move(self, node: Node) -> bool:
        if not moves(node) or node.domain or node.attrs.get("activation"):
            return False
        if node.op == "MaxPool" and any(node.outputs[1:]):
            return False
        if node.op == "Pad":  # zero is always represented; another number need not be
            fill = operand(node, 2)
            value = self._constant(fill)
            zero = not fill or (value is not None and not value.any())
            return zero or node.attrs.get("mode", "constant") != "constant"
        return self._constant(node.inputs[0]) is None

    def _can_light(self, node: Node) -> bool:
        if node.op not in LIGHT or node.domain or not all(self._float(o) for o in node.outputs if o):
            return False
        if node.op in ("Add", "Mul", "Concat") and not all(self._float(n) for n in node.inputs):
            return False
        if any(self._constant(n) is not None and not np.isfinite(self._constant(n)).all() for n in node.inputs if n):
            return False
        if node.op == "Resize":
            plain = node.attrs.get("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
            return plain and node.attrs.get("mode", "nearest") in ("linear", "cubic")
        if node.op == "BatchNormalization":
            constants = (self._constant(n) is not None for n in node.inputs[1:])
            return (
                (self.shapes.rank(node.inputs[0]) or 0) > 2
                and not node.attrs.get("training_mode", 0)
                and all(constants)
            )
        if node.op in DELICATE:
            constants = (self._constant(n) is not None for n in node.inputs[1:] if n)
            return not node.attrs.get("activation") and not any(node.outputs[1:]) and all(constants)
        return node.op != "AveragePool" or not node.attrs.get("ceil_mode", 0)

    def _add_light(self, chosen: set[int]) -> None:
        """Adds light operators and moves that lie between nodes in integers: first all that integers reach, then
        without those from which integers go nowhere."""
        reached = dict.fromkeys(id(n) for n in self.graph.nodes if id(n) in chosen)
        candidates: list[Node] = []
        for node in self.graph.nodes:
            if id(node) in chosen or not (self._can_light(node) or self._can_move(node)):
                continue
            inputs = [n for n in self.data_inputs(node) if self._constant(n) is None]
            sources = [self.writer.get(n) for n in inputs]
            if not sources or any(s is None or id(s) not in reached for s in sources):
                continue
            if self._barred(node):
                continue
            reached[id(node)] = None
            candidates.append(node)
        for node in reversed(candidates):
            readers = [r for o in node.outputs for r in self.readers.get(o, ())]
            if any(id(r) in chosen and self._reads(r, node.outputs) for r in readers):
                chosen.add(id(node))

    def _reads(self, reader: Node, names: Collection[str]) -> bool:
        """Whether a node in integers wants one of these tensors in integers."""
        wanted = self.data_inputs(reader)
        return any(n in wanted for n in names)

    # Which tensors

    def integer(self, node: Node) -> bool:
        return id(node) in self._chosen

    def is_move(self, node: Node) -> bool:
        return self.integer(node) and moves(node)

    def _collect(self) -> None:
        parent: dict[str, str] = {}
        for node in self.nodes:
            if node.op in PRODUCTS and self._constant(node.inputs[1]) is not None:
                self.weights.setdefault(node.inputs[1], node)
            elif is_table(node):
                self.weights.setdefault(node.inputs[0], node)
            for name in self.data_inputs(node):
                value = self._constant(name)
                if value is None or value.size > 1 or node.op == "Concat":  # a number goes into a table
                    parent.setdefault(name, name)
        for node in self.nodes:
            z = operand(node, Z) if node.op in PRODUCTS else ""
            writer = self.writer.get(z)
            # A residual that nobody needs in float is smaller as integers; else its float value is there anyway.
            if not z or z in parent or z in self.graph.outputs or writer is None or not self.integer(writer):
                continue
            if all(self.integer(r) for r in self.readers[z]):
                parent[z] = z

        def root(name: str) -> str:
            while parent[name] != name:
                name = parent[name]
            return name

        for node in self.nodes:  # a move's results have the encoding of what it moves
            if moves(node):
                for out in node.outputs:
                    if out in parent:
                        parent[root(out)] = root(node.inputs[0])
        for node in self.nodes:
            if node.op == "Concat" and node.outputs[0] in parent:
                for name in node.inputs:
                    alone = self.readers[name] == [node] and name not in self.graph.outputs
                    if alone and root(name) != root(node.outputs[0]):
                        parent[root(name)] = root(node.outputs[0])
        self.activations = {name: root(name) for name in parent}

    def groups(self) -> dict[str, list[str]]:
        """The tensors that share an encoding, by the root of their group."""
        found: dict[str, list[str]] = {}
        for name, root in self.activations.items():
            found.setdefault(root, []).append(name)
        return found

    def representative(self, root: str, names: list[str]) -> str:
        """The tensor of a group whose values decide its range: the first, but of what only goes through a MaxPool the
        pooled one (whose lower end is higher), and of a Concat its result."""
        joined = [n for n in names if self.writer.get(n) is not None and self.writer[n].op == "Concat"]
        name = joined[-1] if joined else root
        while name not in self.graph.outputs:
            readers = self.readers.get(name, [])
            if len(readers) != 1 or not self.is_move(readers[0]) or readers[0].op != "MaxPool":
                break
            name = readers[0].outputs[0]
        return name

    def written(self) -> list[str]:
        """The tensors to put QuantizeLinear behind: all to be encoded, but for what a move in integers writes, which
        has the encoding of what it reads."""
        # There is no MaxPool of int16: its result gets a pair too, which goes again where the integers pass through.
        movers = [n for n in self.nodes if moves(n) and n.op != "MaxPool" and n.inputs[0] in self.activations]
        moved = {o for n in movers for o in n.outputs}
        return [name for name in self.activations if name not in moved]

    def uses(self, name: str) -> Iterator[tuple[Node, int]]:
        """The nodes in integers that compute with a tensor (moves excepted), and as which operand."""
        for node in self.readers.get(name, ()):
            if self.integer(node) and not moves(node):
                for i, n in enumerate(node.inputs):
                    if n == name:
                        yield node, i
