"""Adds what is added to a MatMul or Gemm as its bias, and multiplies with transposed matrices where they lie."""

from __future__ import annotations

from evort.graph import Graph, Node
from evort_tools.passes.edit import Context, Edit
from evort_tools.passes.linear import product_of


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    changes = 0
    for node in ed.nodes():
        if node.op == "Add" and not node.attrs:
            changes += _bias(ed, node)
        elif node.op in ("MatMul", "Gemm"):
            changes += _transposed(ed, node)
    return changes


def _bias(ed: Edit, node: Node) -> bool:
    for x, other in (node.inputs, node.inputs[::-1]):
        source = product_of(ed, x)
        if source is None or source.op not in ("MatMul", "Gemm") or len(source.inputs) > 2:
            continue
        out, given = ed.shapes.shape(x), ed.shapes.shape(other)
        if out is None or given is None or not ed.shapes.same_shape(x, node.outputs[0]):
            continue
        if given and given[0] == out[-1] != "" and len(given) == 1:
            # In the Add's place, where the bias is computed already.
            ed.change(node, source.op, [*source.inputs, other], source.attrs)
            return True
    return False


def _transposed(ed: Edit, node: Node) -> bool:
    """MatMul and Gemm of matrices, one of them transposed, are Gemm with transA or transB."""
    if len(node.inputs) > 3 or node.attrs.get("activation") or not ed.is_real(node.outputs[0]):
        return False
    if any(ed.shapes.rank(name) != 2 for name in node.inputs[:2]):
        return False
    for index, key in ((0, "transA"), (1, "transB")):
        transpose = ed.producer(node.inputs[index], "Transpose")
        if transpose is not None and transpose.attrs.get("perm", [1, 0]) == [1, 0]:
            inputs = list(node.inputs)
            inputs[index] = transpose.inputs[0]
            ed.change(node, "Gemm", inputs, {**node.attrs, key: 1 - node.attrs.get(key, 0)})
            return True
    return False
