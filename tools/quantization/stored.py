"""Layers that stay in float32 for speed have weights of integers in the file: loading it makes floats of them once.

    W [float32]    becomes    W [int8, a scale for each output channel] -> DequantizeLinear
                        or    W [packed in few bits, scales by group] -> WidenNBits

so that the file is as small as with the layer in integers, and a run takes what it takes in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from evort.graph import Graph, Model, Node, Tensor
from evort.types import DType
from evort_tools.importer.builder import Names
from evort_tools.passes import names_of
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.qdq import copy_model
from evort_tools.quantization.select import is_product, weight_axis

LEAST = 64  # weights: less is not worth the operands

# Where a node is: its first output, behind the first output and the attribute of each node that it is nested in;
# branches of an If may have equal names.
Place = tuple[str, ...]


def stored(model: Model, floats: Collection[Place], dtype: DType = DType.INT8) -> tuple[Model, list[str]]:
    """A copy of a model in which these products have stored weights, and the names of those that do."""
    copied = copy_model(model)
    return copied, _store(copied.graph, (), floats, names_of(copied.graph), dtype)


def unpacked(model: Model, real: Model, floats: Collection[Place]) -> tuple[Model, list[str]]:
    """A copy of a model with weights of few bits in which these convolutions and Gemms read floats, which loading makes
    of the packed weights, and the names of those that do. real: the float model that it was made of."""
    copied = copy_model(model)
    names, changed = names_of(copied.graph), list[str]()
    before = {place: (graph, node) for place, graph, node in places(real.graph)}
    for place, graph, node in list(places(copied.graph)):
        if place not in floats or node.op not in ("ConvNBits", "MatMulNBits"):
            continue
        old_graph, old = before[place]
        if old.op not in ("Conv", "Gemm"):  # a MatMul would need them turned
            continue
        shape = old_graph.constant(old.inputs[1]).shape
        attrs = dict(old.attrs)
        if old.op == "Gemm":
            shape = shape if attrs.get("transB", 0) else shape[::-1]
            attrs["transB"] = 1
        rest = node.inputs[4:] if old.op == "Conv" else node.inputs[5:]
        packing = {key: node.attrs[key] for key in ("bits", "block_size")}
        operands = [name for name in node.inputs[1:4] if name]
        wide = names.fresh(f"{node.outputs[0]}/weights")
        widen = Node("WidenNBits", operands, [wide], {**packing, "shape": list(shape), "once": 1}, "evort")
        made = Node(old.op, [node.inputs[0], wide, *rest], node.outputs, attrs, "", node.name)
        at = next(i for i, n in enumerate(graph.nodes) if n is node)
        graph.nodes[at : at + 1] = [widen, made]
        changed.append(node.name or node.outputs[0])
    return copied, changed


def places(graph: Graph, place: Place = ()) -> Iterator[tuple[Place, Graph, Node]]:
    """All nodes, those of nested graphs too, where they are, and the graphs that hold them."""
    for node in graph.nodes:
        yield (*place, node.outputs[0]), graph, node
        for key, body in node.attrs.items():
            if isinstance(body, Graph):
                yield from places(body, (*place, node.outputs[0], key))


def _store(graph: Graph, place: Place, floats: Collection[Place], names: Names, dtype: DType) -> list[str]:
    changed: list[str] = []
    made: list[Node] = []
    for node in graph.nodes:
        for key, body in node.attrs.items():
            if isinstance(body, Graph):
                changed += _store(body, (*place, node.outputs[0], key), floats, names, dtype)
        if not is_product(node) or (*place, node.outputs[0]) not in floats:
            continue
        name = node.inputs[1]
        w = graph.constant(name)
        if w is None or w.dtype != np.float32 or w.size < LEAST or not np.isfinite(w).all() or _shared(graph, name):
            continue
        encoding = Encoding.of_weights(w, weight_axis(node, w), dtype)
        q = encoding.quantize(w)
        graph.add(Tensor(name, encoding.dtype, q.shape, q))
        scale = Tensor(names.fresh(f"{name}/scale"), DType.FLOAT, encoding.scale.shape, encoding.scale)
        attrs = {} if encoding.axis in (None, 1) else {"axis": encoding.axis}
        operands = [name, graph.add(scale)]  # without a zero point, which is 0
        made.append(Node("DequantizeLinear", operands, [names.fresh(f"{name}/float")], attrs))
        node.inputs = [node.inputs[0], made[-1].outputs[0], *node.inputs[2:]]
        changed.append(node.name or node.outputs[0])
    graph.nodes[:0] = made
    return changed


def _shared(graph: Graph, name: str) -> bool:
    """Whether a constant is read by anything but one node's second operand."""
    reads = sum(node.inputs.count(name) for node in graph.nodes)
    inner = any(name in sub.free_names() for node in graph.nodes for sub in node.subgraphs())
    return reads > 1 or inner or name in graph.outputs
