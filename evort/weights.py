"""Weights that a file holds as integers and operators read as floats: they become floats once, when it is loaded.

The quantizer stores so what is faster in float32 (`docs/quantization.md`): the file has their size in 8 bits, and a run
takes what it takes with float weights.
"""

from __future__ import annotations

from evort.graph import Graph, Model, Node, Tensor
from evort.quant import dequantize
from evort.types import DType

_STORED = (DType.INT8, DType.UINT8)


def with_floats(model: Model) -> tuple[Model, int]:
    """(the model without the DequantizeLinear nodes that read constants of 8 bits of their own graph, nested ones
    included, with what they give as constants instead; the bytes of these). All else is shared; a model without such
    nodes is returned as it is."""
    graph, nbytes = _with_floats(model.graph)
    if graph is model.graph:
        return model, 0
    return Model(graph, model.opsets, model.metadata, model.producer, model.bounds, model.golden), nbytes


def _with_floats(graph: Graph) -> tuple[Graph, int]:
    nodes: list[Node] = []
    floats: list[Tensor] = []
    nbytes, same = 0, True
    for node in graph.nodes:
        if node.op == "DequantizeLinear" and _constant(graph, node):
            q, scale, *zero = (graph.tensors[name].data for name in node.inputs if name)
            axis = None if scale.ndim == 0 else node.attrs.get("axis", 1) % q.ndim
            value = dequantize(q, scale, zero[0] if zero else None, axis)
            floats.append(Tensor(node.outputs[0], DType.FLOAT, value.shape, value))
            nbytes += value.nbytes
            continue
        inner = {key: _with_floats(sub) for key, sub in node.attrs.items() if isinstance(sub, Graph)}
        if any(made is not node.attrs[key] for key, (made, _) in inner.items()):
            attrs = {**node.attrs, **{key: made for key, (made, _) in inner.items()}}
            nbytes += sum(more for _, more in inner.values())
            node, same = Node(node.op, node.inputs, node.outputs, attrs, node.domain, node.name), False
        nodes.append(node)
    if same and not floats:
        return graph, 0
    made = Graph(graph.name)
    made.tensors, made.inputs, made.outputs, made.nodes = dict(graph.tensors), graph.inputs, graph.outputs, nodes
    for tensor in floats:
        made.add(tensor)
    return made, nbytes


def _constant(graph: Graph, node: Node) -> bool:
    """Whether a DequantizeLinear reads a constant of 8 bits with float32 scales, by tensor or by axis."""
    if node.domain or node.attrs.get("block_size", 0) or node.outputs[0] in graph.outputs:
        return False
    operands = [graph.tensors.get(name) for name in node.inputs if name]
    if any(t is None or t.data is None for t in operands):
        return False
    q, scale = operands[:2]
    return q.dtype in _STORED and scale.dtype == DType.FLOAT and scale.data.ndim <= 1


__all__ = ["with_floats"]
