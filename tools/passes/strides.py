"""Computes only what a Slice with steps keeps of a convolution: the steps become its strides."""

from __future__ import annotations

from evort.graph import Graph, Node
from evort_tools.passes.edit import Context, Edit


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    return sum(_fold(ed, node) for node in list(graph.nodes) if node.op == "Slice" and not node.domain)


def _fold(ed: Edit, node: Node) -> bool:
    conv = ed.producer(node.inputs[0], "Conv")
    if conv is None or ed.only_user(node.inputs[0]) is not node or conv.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return False
    if len(conv.inputs) > 3 and conv.inputs[3]:
        return False
    rank = ed.shapes.rank(conv.inputs[1])
    values = [ed.value(name) if name else None for name in node.inputs[1:]]
    if len(values) < 4 or any(v is None for v in values) or rank is None:
        return False
    starts, _, axes, steps = (v.reshape(-1).tolist() for v in values)
    strides = list(conv.attrs.get("strides") or [1] * (rank - 2))
    shapes = ed.shapes.sampled_shapes(node.inputs[0], node.outputs[0])
    if shapes is None:
        return False
    for start, axis, step in zip(starts, axes, steps, strict=True):
        axis %= rank
        # From the first to the last, as far as the steps go.
        ends = all(-(-w[axis] // step) == k[axis] for w, k in zip(*shapes, strict=True)) if step > 0 else False
        if start != 0 or axis < 2 or not ends:
            return False
        strides[axis - 2] *= step
    # In place of the Slice, whose output has its facts already.
    ed.change(node, "Conv", conv.inputs, {**conv.attrs, "strides": strides})
    return True
