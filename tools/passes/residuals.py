"""Lets a product add the tensor that is added to it: Add(Conv(x), z) -> Conv(x, residual z)."""

from __future__ import annotations

from evort.graph import Graph, Node
from evort.ops.base import find
from evort_tools.passes.edit import Context, Edit
from evort_tools.passes.linear import Z, bias, product_of, replace, weights


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    return sum(_fold(ed, node) for node in list(graph.nodes) if node.op in ("Add", "Sub") and not node.domain)


def _fold(ed: Edit, node: Node) -> bool:
    if node.attrs.get("activation") or node.inputs[0] == node.inputs[1]:
        return False
    found = []
    for x, z in (node.inputs, node.inputs[::-1]):
        source = product_of(ed, x)
        if source is None or not _takes_residual(source) or ed.value(z) is not None:
            continue
        if node.op == "Sub" and x == node.inputs[0]:
            continue
        if ed.shapes.same_shape(x, node.outputs[0]) and ed.shapes.same_shape(z, node.outputs[0]):
            found.append((ed.graph.nodes.index(source), source, z))
    if not found:
        return False
    at, source, z = max(found, key=lambda entry: entry[0])
    # The product moves to the Add: its inputs must not have to live longer for the sake of what comes in between.
    other = ed.writer.get(z)
    if other is not None and ed.graph.nodes.index(other) > at:
        return False
    if node.op == "Sub" and not _negate(ed, source):
        return False
    inputs = [*source.inputs, *[""] * (Z - len(source.inputs)), z]
    ed.change(node, source.op, inputs, source.attrs)
    return True


def _takes_residual(node: Node) -> bool:
    definition = find(node.op)
    return definition is not None and len(definition.inputs) > Z and definition.inputs[Z] == "Z?"


def _negate(ed: Edit, node: Node) -> bool:
    """z - (W x + b) = z + (-W x - b)."""
    w, b = weights(ed, node), bias(ed, node)
    if w is None or b is None or node.op == "Gemm":
        return False
    return replace(ed, node, -w, -b if len(node.inputs) > 2 and node.inputs[2] else None)
