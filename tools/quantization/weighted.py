"""The layers of a model whose weights are constants, as matrices of one row for each output channel.

What the schemes that replace a layer's operator share (weights, gptq, dynamic): finding the layers, and putting other
nodes in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evort.graph import Graph, Model, Node, Tensor
from evort.types import STORAGE, DType

Replace = Callable[["Layer"], list[Node] | None]
Other = Callable[[Graph, Node], list[Node] | None]


class Layer:
    """A node with weights: MatMul, Gemm, Conv, ConvTranspose, or a Gather from a table of two axes.

    rows: the weights [n, k], a row for each output channel (column of a product, row of a table); a view where it can
    be. weight: the constant's name. bias: the name of a bias [n] that the operator adds, or "". columns: whether the
    constant holds a channel in a column, as MatMul's does.
    """

    __slots__ = ("bias", "columns", "graph", "node", "rows", "weight")

    def __init__(self, graph: Graph, node: Node, weight: str, rows: np.ndarray, columns: bool, bias: str = ""):
        self.graph = graph
        self.node = node
        self.weight = weight
        self.rows = rows
        self.columns = columns
        self.bias = bias

    @property
    def name(self) -> str:
        """How users name it: the node's name, or else its output's."""
        return self.node.name or self.node.outputs[0]

    def input(self, index: int) -> str:
        """The name of an input, "" where it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else ""

    def activation(self) -> dict[str, object]:
        """The node's activation attributes."""
        return {key: value for key, value in self.node.attrs.items() if key.startswith("activation")}

    def add(self, suffix: str, value: np.ndarray, dtype: DType | None = None) -> str:
        """Adds a constant to the graph beside the weights, under a name made from theirs; returns the name. A constant
        of that name is the same weights' of another layer that shares them."""
        name = f"{self.weight}:{suffix}"
        if name not in self.graph.tensors:
            kind = dtype if dtype is not None else _DTYPES[value.dtype]
            self.graph.add(Tensor(name, kind, value.shape, np.ascontiguousarray(value)))
        return name


_DTYPES = {STORAGE[d]: d for d in (DType.FLOAT, DType.UINT8, DType.INT8, DType.INT16, DType.INT32, DType.FLOAT16)}


def layer_of(graph: Graph, node: Node) -> Layer | None:
    """The layer that a node is, or None: its weights must be a float32 constant of this graph."""
    index = 0 if node.op == "Gather" else 1
    if node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    tensor = graph.tensors.get(node.inputs[index])
    if tensor is None or tensor.data is None or tensor.dtype != DType.FLOAT or tensor.data.size == 0:
        return None
    w, name, attrs = tensor.data, tensor.name, node.attrs
    third = node.inputs[2] if len(node.inputs) > 2 else ""
    match node.op:
        case "MatMul" if w.ndim == 2:
            return Layer(graph, node, name, w.T, True, third)
        case "Gemm" if not attrs.get("transA", 0):
            rows = w if attrs.get("transB", 0) else w.T
            bias = graph.tensors.get(third)
            fits = not third or (bias is not None and bias.shape in ((len(rows),), (1, len(rows))))
            if attrs.get("alpha", 1.0) != 1 or (third and attrs.get("beta", 1.0) != 1) or not fits:
                return None
            return Layer(graph, node, name, rows, not attrs.get("transB", 0), third)
        case "Conv" if w.ndim >= 3:
            return Layer(graph, node, name, w.reshape(w.shape[0], -1), False, third)
        case "ConvTranspose" if w.ndim >= 3:
            group = attrs.get("group", 1)
            parts = w.reshape(group, w.shape[0] // group, *w.shape[1:])
            return Layer(graph, node, name, np.swapaxes(parts, 1, 2).reshape(group * w.shape[1], -1), True, third)
        case "Gather" if w.ndim == 2 and attrs.get("axis", 0) in (0, -2):
            return Layer(graph, node, name, w, False)
    return None


def rewrite(model: Model, replace: Replace, other: Other | None = None, nested: bool = True) -> Model:
    """A copy of a model in which `replace` has given the nodes that take a layer's place; None keeps it. other: the
    same for nodes that are no layers, with the graph, to which it may add constants. nested: in nested graphs, too.
    Constants that are no longer read are dropped; those that stay are shared with the old model, which is unchanged.
    Golden data, which the new model would not give, is left out."""
    graph = _rewritten(model.graph, replace, other, nested)
    return Model(graph, dict(model.opsets), dict(model.metadata), model.producer, dict(model.bounds))


def _rewritten(graph: Graph, replace: Replace, other: Other | None, nested: bool) -> Graph:
    new = Graph(graph.name)
    new.inputs, new.outputs, new.tensors = list(graph.inputs), list(graph.outputs), dict(graph.tensors)
    for node in graph.nodes:
        if any(True for _ in node.subgraphs()):
            attrs = {
                k: _rewritten(v, replace, other, nested) if nested and isinstance(v, Graph) else v
                for k, v in node.attrs.items()
            }
            new.nodes.append(Node(node.op, list(node.inputs), list(node.outputs), attrs, node.domain, node.name))
            continue
        layer = layer_of(new, node)
        found = None
        if layer is not None:
            found = replace(layer)
        elif other is not None:
            found = other(new, node)
        new.nodes += [node] if found is None else found
    read = {*new.outputs, *new.inputs}
    for node in new.nodes:
        read.update(node.inputs)
        for sub in node.subgraphs():
            read.update(sub.free_names())
    new.tensors = {name: t for name, t in new.tensors.items() if t.data is None or name in read}
    return new


def node_like(layer: Layer, op: str, inputs: Sequence[str], attrs: dict[str, object], domain: str = "") -> list[Node]:
    """The layer's node under another operator, with the same name and outputs; trailing absent inputs are cut."""
    names = list(inputs)
    while names and not names[-1]:
        names.pop()
    return [Node(op, names, list(layer.node.outputs), attrs, domain, layer.node.name)]
