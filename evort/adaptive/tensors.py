"""Which tensors of a quantized graph have a range that may follow the data, and where its scale stands.

Tensors that hold the same numbers (MaxPool, Reshape and the like move integers without a scale of their own) share one
scale and are one `Followed`. A tensor that an operator reads in another way (a table of 256 entries was made for one
scale) keeps the scale that it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from evort.graph import Graph, Node
from evort.ops.activation import ACTIVATIONS
from evort.ops.qoperands import scaled_operands
from evort.types import DType

# They hand the integers of input 0 on, to output 0.
_MOVES = frozenset(
    {"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Expand", "Tile"}
)
# Their kernels note the range of what they write: whether in units of its scale.
_NOTED = {
    **dict.fromkeys(("QLinearConv", "QLinearConvTranspose", "QLinearMatMul", "QGemm"), False),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), True),
    **dict.fromkeys(("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearReduceMean"), True),
}
_BIAS = {"QLinearConv": 8, "QLinearConvTranspose": 8, "QLinearMatMul": 8, "QGemm": 6}
_LIMITS = {DType.UINT8: (0, 255), DType.INT8: (-128, 127), DType.INT16: (-32768, 32767)}
_INTEGERS = {np.dtype(np.uint8): DType.UINT8, np.dtype(np.int8): DType.INT8, np.dtype(np.int16): DType.INT16}


class Use:
    """A node's operand with a scale. node, operand (-1: output 0), scale, zero: indices."""

    __slots__ = ("node", "operand", "scale", "zero")

    def __init__(self, node: int, operand: int, scale: int, zero: int):
        self.node, self.operand, self.scale, self.zero = node, operand, scale, zero


class Followed:
    """Tensors with one scale.

    name: of the first. names: all. uses: where the scale is an operand. writer: the node whose kernel notes the range,
    or -1 for an input of the graph. scale, zero, dtype: as in the file. symmetric: its zero point is to stay 0. bounds:
    what the writer's activation clamps to. float: the tensor is float32 and quantized where it is read. steps: its
    range is noted in units of its scale.
    """

    __slots__ = ("bounds", "dtype", "float", "name", "names", "scale", "steps", "symmetric", "uses", "writer", "zero")

    def __init__(self, names: list[str], uses: list[Use], writer: int, bounds: tuple[float, float], is_float: bool,
                 scale: float, zero: int, dtype: DType, steps: bool):  # fmt: skip
        self.name, self.names, self.uses, self.writer, self.bounds = names[0], names, uses, writer, bounds
        self.float, self.scale, self.zero, self.dtype = is_float, scale, zero, dtype
        self.steps = steps
        self.symmetric = zero == 0 and dtype != DType.UINT8

    def range(self) -> tuple[float, float]:
        """The real values that the integers of the file stand for."""
        low, high = _LIMITS[self.dtype]
        return (low - self.zero) * self.scale, (high - self.zero) * self.scale


def followed(graph: Graph) -> list[Followed]:
    """The tensors of a graph whose ranges can follow the data, in the order in which they are written."""
    finder = _Finder(graph)
    return [f for f in map(finder.build, finder.roots()) if f is not None]


class _Finder:
    def __init__(self, graph: Graph):
        self.graph = graph
        self.writer = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs if name}
        self.parent: dict[str, str] = {}
        self.uses: dict[str, list[Use]] = {}
        self.fixed: set[str] = set(graph.outputs)  # whose integers somebody reads in a way of their own
        for i, node in enumerate(graph.nodes):
            scaled = dict(self._scaled(node))
            for operand, (scale, zero) in scaled.items():
                name = node.outputs[0] if operand < 0 else node.inputs[operand]
                self.uses.setdefault(name, []).append(Use(i, operand, scale, zero))
            if node.op in _MOVES and not node.domain and node.inputs[0]:
                self._join(node.outputs[0], node.inputs[0])
                self.fixed.update(node.inputs[1:] + node.outputs[1:])
                continue
            self.fixed.update(n for j, n in enumerate(node.inputs) if j not in scaled)
            self.fixed.update(n for j, n in enumerate(node.outputs) if j > 0 or -1 not in scaled)
            for sub in node.subgraphs():
                self.fixed.update(sub.free_names())

    def _scaled(self, node: Node) -> Iterator[tuple[int, tuple[int, int]]]:
        """{operand: (scale, zero point)} of the operands that are no constants."""
        for operand, scale, zero in scaled_operands(node):
            given = len(node.inputs)
            if max(operand, scale) < given and node.inputs[scale]:
                name = node.outputs[0] if operand < 0 else node.inputs[operand]
                if name and self.graph.constant(name) is None:
                    yield operand, (scale, zero if zero < given else -1)

    def _root(self, name: str) -> str:
        while name in self.parent:
            name = self.parent[name]
        return name

    def _join(self, a: str, b: str) -> None:
        a, b = self._root(a), self._root(b)
        if a != b:
            self.parent[a] = b

    def roots(self) -> list[list[str]]:
        """Names that share a scale, first written first."""
        groups: dict[str, list[str]] = {}
        names = {*self.uses, *self.parent, *self.parent.values()}
        order = dict.fromkeys(self.graph.inputs, -1) | self.writer
        for name in sorted(names, key=lambda n: (order.get(n, -1), n)):
            groups.setdefault(self._root(name), []).append(name)
        return list(groups.values())

    def build(self, names: list[str]) -> Followed | None:
        """The group of these names, or None where its scale has to stay."""
        graph = self.graph
        uses = [use for name in names for use in self.uses.get(name, ())]
        first = self.writer.get(names[0], -1)
        node = graph.nodes[first] if first >= 0 else None
        noted = node is not None and node.op in _NOTED
        is_float = first < 0 and names[0] in graph.inputs and graph.tensors[names[0]].dtype == DType.FLOAT
        # What is read in another way may be float: then only those uses matter that quantize as they read.
        if not uses or not (noted or is_float) or (not is_float and self.fixed.intersection(names)):
            return None
        found = {self._encoding(graph.nodes[use.node], use) for use in uses}
        if len(found) != 1 or None in found:
            return None
        scale, zero, dtype = found.pop()
        if noted and not any(use.node == first and use.operand == -1 for use in uses):
            return None  # it writes float32
        bounds = _clamp(node, zero, dtype) if noted else (-math.inf, math.inf)
        if bounds is None:
            return None
        return Followed(names, uses, first, bounds, is_float, scale, zero, dtype, noted and _NOTED[node.op])

    def _encoding(self, node: Node, use: Use) -> tuple[float, int, DType] | None:
        scale = self.graph.constant(node.inputs[use.scale])
        zero = self.graph.constant(node.inputs[use.zero]) if use.zero >= 0 else None
        if scale is None or zero is None or scale.size != 1 or zero.size != 1 or scale.dtype != np.float32:
            return None
        dtype = _INTEGERS.get(zero.dtype)
        return None if dtype is None else (float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), dtype)


def _clamp(node: Node, zero: int, dtype: DType) -> tuple[float, float] | None:
    """What a node bounds its results to: by its activation, or by a zero point at the lower end of its type, which may
    stand for a Relu that is left out. None where more than a clamp and that come together, or it is the upper end."""
    activation = node.attrs.get("activation") or ""
    least, most = _LIMITS[dtype]
    low, high = -math.inf, math.inf
    if activation == "Relu":
        low = 0.0
    elif activation == "Clip":
        low, high = ACTIVATIONS["Clip"].params
        low, high = float(node.attrs.get("activation_alpha", low)), float(node.attrs.get("activation_beta", high))
    elif activation and zero == least:
        return None
    if zero == most:
        return None
    return (max(low, 0.0) if zero == least else low), high


def biases(graph: Graph, tensors: list[Followed]) -> Iterator[tuple[int, int, list[int]]]:
    """The int32 biases in units of followed scales: (node, index of the bias, the tensors whose scales it has)."""
    for i, node in enumerate(graph.nodes):
        index = _BIAS.get(node.op, -1)
        if 0 <= index < len(node.inputs) and graph.constant(node.inputs[index]) is not None:
            operands = {f_index for f_index, f in enumerate(tensors) for use in f.uses
                        if use.node == i and use.operand in (0, 3)}  # fmt: skip
            if operands:
                yield i, index, sorted(operands)
