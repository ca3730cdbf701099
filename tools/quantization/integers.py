"""A calibrated float model as one of integer operators, in which no cast is a pass over memory of its own.

    model, found = integer_model(real, found)

The pass `integers` lets the operator that computes a tensor write it in float, or those that read it quantize what they
read. What cannot do either (a MaxPool or an average beside operators in float) is kept in float here.
"""

from __future__ import annotations

from evort.graph import Graph, Model, Node
from evort_tools.passes import graphs_of, lower
from evort_tools.passes.integer_sides import READS, WRITES
from evort_tools.quantization import static
from evort_tools.quantization.qdq import copy_model, insert, name_constants
from evort_tools.quantization.select import PRODUCTS, moves
from evort_tools.quantization.static import Calibrated

WHY = "its neighbours in float would need a cast that costs a pass over memory"
_CASTS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def casts(graph: Graph) -> list[Node]:
    """The nodes that do nothing but cast computed tensors between floats and integers, nested graphs included."""
    return [
        node for g in graphs_of(graph) for node in g.nodes if node.op in _CASTS and g.constant(node.inputs[0]) is None
    ]


def integer_model(real: Model, found: Calibrated) -> tuple[Model, Calibrated]:
    """The integer model of a float one (which stays as it is), and what calibration found for the nodes that are
    integers in it: some light operators may be in float for their neighbours' sake."""
    own = {node.outputs[0] for node in casts(real.graph)}
    while True:
        model = copy_model(real)
        insert(model.graph, found.encodings, {node.outputs[0] for node in found.selection.nodes})
        lower(model)
        left = [node for node in casts(model.graph) if node.outputs[0] not in own]
        stuck = _stuck(model.graph, left, found)
        if not stuck:
            name_constants(model.graph)
            return model, found
        found = static.restricted(found, dict.fromkeys(stuck, WHY))


def _stuck(graph: Graph, left: list[Node], found: Calibrated) -> list[str]:
    """The first outputs of light operators in integers that casts are left for."""
    light = {n.outputs[0] for n in found.selection.nodes if n.op not in PRODUCTS}
    writer = {name: node for node in graph.nodes for name in node.outputs}
    stuck: list[str] = []
    for cast in left:
        integers = cast.outputs[0] if cast.op == "QuantizeLinear" else cast.inputs[0]
        node = writer.get(integers)
        while node is not None and moves(node) and node.outputs[0] not in light:
            node = writer.get(node.inputs[0])  # the pass lets integers through what moves them
        if node is not None and _kind(node) not in WRITES:
            stuck.append(node.outputs[0])
        stuck += [n.outputs[0] for n in graph.nodes if integers in n.inputs and _kind(n) not in READS]
    return [name for name in stuck if name in light]


def _kind(node: Node) -> tuple[str, str]:
    return node.domain, node.op
