"""Cross-layer equalization: channels between two products are scaled so that their weights use the integers alike.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.1. Where
y = W2 f(W1 x + b1) and f(s h) = s f(h) for s > 0 (nothing, Relu, LeakyRelu), channel i of h may be divided by any
s_i > 0: W1[i] and b1[i] by s_i, W2[:, i] times s_i. With s_i = sqrt(r1_i r2_i) / r2_i, r the largest magnitudes of the
channel's weights on either side, both sides have the same range in each channel.
"""

from __future__ import annotations

import numpy as np

from evort.graph import Graph, Node, Tensor
from evort.types import DType
from evort_tools.passes import names_of
from evort_tools.quantization.select import PRODUCTS, Z, operand

HOMOGENEOUS = frozenset({"", "Relu", "LeakyRelu"})
# What is between two products may only move whole channels, or do the same with positive multiples.
_BETWEEN = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Relu", "LeakyRelu", "Identity"})
# Ranges of nothing, and steps of more than this in one channel, are left alone.
_MOST_STEP = 2.0**14


def input_axis(node: Node) -> int | None:
    """The axis of a product's weights along which its input's channels lie; None where those are in groups."""
    group = node.attrs.get("group", 1)
    if node.op == "Conv":
        return 1 if group == 1 else None
    if node.op == "ConvTranspose":
        return 0 if group == 1 else None
    if node.op == "Gemm":
        return 1 if node.attrs.get("transB", 0) else 0
    return 0


def output_axis(node: Node) -> int | None:
    """The axis of a product's weights along which its output's channels lie; None where those are in groups."""
    if node.op == "ConvTranspose":
        return 1 if node.attrs.get("group", 1) == 1 else None
    if node.op == "Conv":
        return 0
    return 1 - input_axis(node)


class Side:
    """A product's weights as seen from the channels between two products: the axis of those channels."""

    def __init__(self, graph: Graph, node: Node, axis: int):
        self.node = node
        self.axis = axis
        self.weights = graph.constant(node.inputs[1])

    @property
    def channels(self) -> int:
        return self.weights.shape[self.axis]

    def ranges(self) -> np.ndarray:
        """The largest magnitude in each channel."""
        others = tuple(i for i in range(self.weights.ndim) if i != self.axis)
        return np.abs(self.weights).max(axis=others).astype(np.float64)


def reading_side(graph: Graph, node: Node) -> Side | None:
    """How a product reads its input's channels; a depthwise convolution reads each with the weights of that channel."""
    w = graph.constant(operand(node, 1))
    if node.op not in PRODUCTS or node.domain or w is None or w.dtype != np.float32 or w.ndim < 2:
        return None
    axis = input_axis(node)
    if axis is None and node.op == "Conv" and w.shape[1] == 1 and w.shape[0] == node.attrs.get("group", 1):
        axis = 0
    if axis is None or (node.op == "MatMul" and w.ndim != 2):
        return None
    return Side(graph, node, axis)


def writing_side(graph: Graph, node: Node) -> Side | None:
    """How a product writes its output's channels, where those may be scaled: nothing is added to it, its activation is
    homogeneous."""
    w = graph.constant(operand(node, 1))
    if node.op not in PRODUCTS or node.domain or w is None or w.dtype != np.float32 or w.ndim < 2:
        return None
    if node.attrs.get("activation", "") not in HOMOGENEOUS or operand(node, Z) or (node.op == "MatMul" and w.ndim != 2):
        return None
    axis, bias = output_axis(node), operand(node, 2)
    if axis is None:
        return None
    b = graph.constant(bias) if bias else None
    if bias and (b is None or b.size not in (1, w.shape[axis])):
        return None
    if node.op == "Gemm" and (node.attrs.get("alpha", 1.0) != 1 or node.attrs.get("beta", 1.0) != 1):
        return None
    return Side(graph, node, axis)


def readers_of(graph: Graph) -> dict[str, list[Node]]:
    """The nodes that read each tensor; nested graphs count as their node."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        names = [*node.inputs, *(n for sub in node.subgraphs() for n in sub.free_names())]
        for name in dict.fromkeys(names):
            readers.setdefault(name, []).append(node)
    return readers


def pairs(graph: Graph) -> list[tuple[Side, Side]]:
    """Products whose output goes, through nothing but what keeps channels, to one other product alone."""
    readers = readers_of(graph)
    found = []
    for node in graph.nodes:
        first = writing_side(graph, node)
        if first is None or len(readers.get(node.inputs[1], ())) > 1:
            continue
        name = node.outputs[0]
        while True:
            users = readers.get(name, [])
            if len(users) != 1 or name in graph.outputs:
                break
            user = users[0]
            if user.op in _BETWEEN and not user.domain and len(user.outputs) == 1 and not user.attrs.get("activation"):
                if name == user.inputs[0]:
                    name = user.outputs[0]
                    continue
                break
            second = reading_side(graph, user) if user.inputs[0] == name and name not in user.inputs[1:] else None
            plain = second is not None and len(readers.get(user.inputs[1], ())) == 1
            if plain and second.channels == first.channels and _same_layout(node, user):
                found.append((first, second))
            break
    return found


def _same_layout(first: Node, second: Node) -> bool:
    """Whether both take channels to lie along the same axis: axis 1 for convolutions, the last one for others."""
    convolutions = ("Conv", "ConvTranspose")
    return (first.op in convolutions) == (second.op in convolutions)


def set_constant(graph: Graph, node: Node, index: int, value: np.ndarray) -> None:
    """Gives a node another constant operand, under the old one's name where nothing else reads that."""
    name = node.inputs[index]
    if name in graph.outputs or len(readers_of(graph)[name]) > 1 or node.inputs.count(name) > 1:
        name = names_of(graph).fresh(f"{name}/own")
        node.inputs = [name if i == index else n for i, n in enumerate(node.inputs)]
    graph.add(Tensor(name, DType.FLOAT, value.shape, np.ascontiguousarray(value, np.float32)))


def scale_output(graph: Graph, side: Side, factors: np.ndarray) -> None:
    """Multiplies a product's output channels."""
    node = side.node
    shape = [-1 if i == side.axis else 1 for i in range(side.weights.ndim)]
    set_constant(graph, node, 1, side.weights * factors.reshape(shape))
    bias = operand(node, 2)
    if bias:
        b = graph.constant(bias)
        set_constant(graph, node, 2, b * (factors if b.ndim < 2 else factors.reshape(1, -1)))


def scale_input(graph: Graph, side: Side, factors: np.ndarray) -> None:
    """Lets a product expect its input channels divided by `factors`."""
    shape = [-1 if i == side.axis else 1 for i in range(side.weights.ndim)]
    set_constant(graph, side.node, 1, side.weights * factors.reshape(shape))


def equalize(graph: Graph, rounds: int = 20) -> int:
    """Equalizes all pairs of products of a graph, in place; returns how many there are.

    rounds: at most so many, since chains of pairs converge; it ends when no factor is above 1 % any more.
    """
    count = len(pairs(graph))
    for _ in range(rounds):
        largest = 1.0
        for i in range(count):
            first, second = pairs(graph)[i]
            r1, r2 = first.ranges(), second.ranges()
            good = (r1 > 0) & (r2 > 0)
            s = np.ones(len(r1))
            s[good] = np.clip(np.sqrt(r1[good] / r2[good]), 1 / _MOST_STEP, _MOST_STEP)
            scale_output(graph, first, 1 / s)
            scale_input(graph, Side(graph, second.node, second.axis), s)
            largest = max(largest, float(np.maximum(s, 1 / s).max()))
        if largest < 1.01:
            break
    return count
