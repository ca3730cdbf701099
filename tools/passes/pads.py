"""Folds Pad with zeros into the convolution or average pool behind it, Pad with -infinity into a maximum pool."""

from __future__ import annotations

import math

from evort.graph import Graph, Node
from evort_tools.passes.edit import Context, Edit


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    operators = ("Conv", "AveragePool", "MaxPool")
    return sum(_fold(ed, node) for node in list(graph.nodes) if node.op in operators and not node.domain)


def _fold(ed: Edit, node: Node) -> bool:
    pad = ed.producer(node.inputs[0], "Pad")
    if pad is None or not ed.single(node.inputs[0]) or pad.attrs.get("mode", "constant") != "constant":
        return False
    spatial = _spatial(ed, pad)
    if spatial is None or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    attrs = dict(node.attrs)
    own = attrs.get("pads") if attrs.get("auto_pad", "NOTSET") == "NOTSET" else None
    own = list(own or [0] * len(spatial))
    fill = ed.scalar(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] else 0.0
    if node.op == "MaxPool":
        # Its own padding never wins; positions of maxima count from the unpadded input.
        if fill != -math.inf or any(node.outputs[1:]):
            return False
    elif fill != 0:
        return False
    if node.op == "AveragePool":
        counted = attrs.get("count_include_pad", 0)
        if attrs.get("ceil_mode", 0) or (any(own) and not counted):
            return False
        attrs["count_include_pad"] = 1
    if node.op in ("AveragePool", "MaxPool"):
        kernel = attrs["kernel_shape"]
        total = [a + b for a, b in zip(own, spatial, strict=True)]
        # A window must not lie in the padding alone.
        if any(t >= k for t, k in zip(total, [*kernel, *kernel], strict=True)) or attrs.get("ceil_mode", 0):
            return False
    attrs.pop("auto_pad", None)
    attrs["pads"] = [a + b for a, b in zip(own, spatial, strict=True)]
    ed.change(node, node.op, [pad.inputs[0], *node.inputs[1:]], attrs)
    return True


def _spatial(ed: Edit, pad: Node) -> list[int] | None:
    """The amounts of a Pad that only adds to spatial axes, all beginnings first; None for another."""
    pads, rank = ed.value(pad.inputs[1]), ed.shapes.rank(pad.inputs[0])
    if pads is None or rank is None:
        return None
    amounts = [0] * (2 * rank)
    axes = range(rank)
    if len(pad.inputs) > 3 and pad.inputs[3]:
        given = ed.value(pad.inputs[3])
        if given is None:
            return None
        axes = [a % rank for a in given.tolist()]
    values = pads.tolist()
    for i, axis in enumerate(axes):
        amounts[axis], amounts[axis + rank] = values[i], values[i + len(values) // 2]
    if min(amounts, default=0) < 0 or any(amounts[axis] or amounts[axis + rank] for axis in range(min(2, rank))):
        return None
    return [*amounts[2:rank], *amounts[rank + 2 :]]
