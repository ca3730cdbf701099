"""Weights that a file holds as integers and operators read as floats: they become floats once, when it is loaded.

The quantizer stores so what is faster in float32 (`docs/quantization.md`): the file has their size in few bits, and a
run takes what it takes with float weights. Those of an If's branch become floats when it is taken first: of one that
never is, nothing is read.
"""

from __future__ import annotations

import math

import numpy as np

from evort._kernels.core import release
from evort.graph import Graph, Model, Node, Tensor
from evort.ops.base import Call, Op, check_arity, complete_attrs, lookup
from evort.quant import dequantize
from evort.types import DType, Spec

_STORED = (DType.INT8, DType.UINT8, DType.INT16)
_PACKED = ((DType.UINT8,), (DType.FLOAT, DType.FLOAT16), (DType.UINT8, DType.FLOAT, DType.FLOAT16))  # of WidenNBits
_LINE = 64  # bytes


def with_floats(model: Model) -> tuple[Model, int]:
    """(the model without the nodes that make floats of constant integers of their own graph (`_constant`), nested ones
    included, with what they give as constants instead; the bytes of these, `pending` ones among them). Branches of an
    If become so in their `Graph.taken`. All else is shared; a model without such nodes is returned as it is."""
    graph, nbytes = _with_floats(model.graph)
    if graph is model.graph:
        return model, 0
    return Model(graph, model.opsets, model.metadata, model.producer, model.bounds, model.golden), nbytes


def pending(graph: Graph) -> int:
    """The bytes of the floats of branches that have not been taken yet, of what `with_floats` gave."""
    total = 0
    for sub in (sub for node in graph.nodes for sub in node.subgraphs()):
        later = sub.make
        untaken = later is not None and later.made is None
        total += later.nbytes if untaken else pending(sub if later is None else later.made)
    return total


class _Later:
    """Makes a branch's floats when it is taken first. nbytes: that they take; made: the graph with them, or None."""

    __slots__ = ("graph", "made", "nbytes")

    def __init__(self, graph: Graph, nbytes: int):
        self.graph, self.nbytes = graph, nbytes
        self.made: Graph | None = None

    def __call__(self) -> Graph:
        if self.made is None:
            self.made, _ = _with_floats(self.graph)
        return self.made


def _with_floats(graph: Graph) -> tuple[Graph, int]:
    nodes: list[Node] = []
    floats: list[Tensor] = []
    nbytes, same = 0, True
    for node in graph.nodes:
        if _constant(graph, node):
            q, scale, *zero = (graph.tensors[name].data for name in node.inputs if name)
            value = _aligned(_shape(graph, node))
            if node.domain:
                definition, call = _checked(graph, node)
                value[...] = definition.reference(call, q, scale, *zero)
            else:
                axis = None if scale.ndim == 0 else node.attrs.get("axis", 1) % q.ndim
                dequantize(q, scale, zero[0] if zero else None, axis, value)
            release(q)
            floats.append(Tensor(node.outputs[0], DType.FLOAT, value.shape, value))
            nbytes += value.nbytes
            continue
        form = _later if node.op == "If" and not node.domain else _with_floats
        inner = {key: form(sub) for key, sub in node.attrs.items() if isinstance(sub, Graph)}
        if any(made is not node.attrs[key] for key, (made, _) in inner.items()):
            attrs = {**node.attrs, **{key: made for key, (made, _) in inner.items()}}
            nbytes += sum(more for _, more in inner.values())
            node, same = Node(node.op, node.inputs, node.outputs, attrs, node.domain, node.name), False
        nodes.append(node)
    if same and not floats:
        return graph, 0
    made = _copy(graph, nodes)
    for tensor in floats:
        made.add(tensor)
    return made, nbytes


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An array of float32 that begins with a line of the cache, as a file's constants do: kernels take a tenth longer
    where vectors lie in two."""
    room = np.empty(math.prod(shape) + _LINE // 4 - 1, np.float32)
    first = -room.ctypes.data % _LINE // 4
    return room[first : first + math.prod(shape)].reshape(shape)


def _later(graph: Graph) -> tuple[Graph, int]:
    """A branch that becomes floats once it is taken."""
    nbytes = _bytes_of(graph)
    if not nbytes:
        return graph, 0
    copied = _copy(graph, graph.nodes)
    copied.make = _Later(graph, nbytes)
    return copied, nbytes


def _copy(graph: Graph, nodes: list[Node]) -> Graph:
    made = Graph(graph.name)
    made.tensors, made.inputs, made.outputs, made.nodes = dict(graph.tensors), graph.inputs, graph.outputs, nodes
    return made


def _bytes_of(graph: Graph) -> int:
    """Bytes of a graph's stored weights as floats, nested ones included."""
    own = sum(4 * math.prod(_shape(graph, node)) for node in graph.nodes if _constant(graph, node))
    return own + sum(_bytes_of(sub) for node in graph.nodes for sub in node.subgraphs())


def _shape(graph: Graph, node: Node) -> tuple[int, ...]:
    """Of what such a node gives. Raises ShapeError for operands that do not fit its attributes."""
    return _checked(graph, node)[1].outs[0].shape if node.domain else graph.tensors[node.inputs[0]].data.shape


def _checked(graph: Graph, node: Node) -> tuple[Op, Call]:
    """The definition of such a WidenNBits, and the node as that sees it."""
    definition = lookup(node)
    check_arity(definition, node)
    ins = [Spec(graph.tensors[name].dtype, graph.tensors[name].data.shape) if name else None for name in node.inputs]
    call = Call(node, complete_attrs(definition, node), ins)
    call.outs = definition.infer(call)
    return definition, call


def _constant(graph: Graph, node: Node) -> bool:
    """Whether a node is a DequantizeLinear of constant integers with float32 scales, by tensor or by axis, or a
    WidenNBits of constants that says so (`once`)."""
    packed = (node.domain, node.op) == ("evort", "WidenNBits") and node.attrs.get("once", 0)
    plain = (node.domain, node.op) == ("", "DequantizeLinear") and not node.attrs.get("block_size", 0)
    if not (packed or plain) or node.outputs[0] in graph.outputs:
        return False
    operands = [graph.tensors.get(name) for name in node.inputs if name]
    if any(t is None or t.data is None for t in operands):
        return False
    if packed:
        return all(t.dtype in kinds for t, kinds in zip(operands, _PACKED, strict=False))
    q, scale = operands[:2]
    return q.dtype in _STORED and scale.dtype == DType.FLOAT and scale.data.ndim <= 1


__all__ = ["pending", "with_floats"]
