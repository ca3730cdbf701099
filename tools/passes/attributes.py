"""Drops attributes that go without saying.

They are an operator's defaults, a kernel_shape that constant weights tell, and a Relu whose integers cannot be
negative. The file is smaller without them, and a quantized one is held to a fraction of the float one's size.
"""

from __future__ import annotations

from evort.graph import Graph, Node
from evort.ops.base import find
from evort.types import RANGES
from evort_tools.passes.edit import Context, Edit
from evort_tools.passes.integer_products import PRODUCTS, Y

# Convolutions -> the operand that has their weights.
_WEIGHTS = {
    ("", "Conv"): 1, ("", "ConvTranspose"): 1, ("", "QLinearConv"): 3, ("evort", "QLinearConvTranspose"): 3,
}  # fmt: skip


# Of windows, where nothing is given: all of them this.
_PLAIN = {"dilations": 1, "strides": 1, "pads": 0}


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    return sum(_shorten(ed, node) for node in graph.nodes)


def _shorten(ed: Edit, node: Node) -> int:
    definition = find(node.op, node.domain)
    known = definition.attrs if definition is not None else {}
    kept = {k: v for k, v in node.attrs.items() if k not in known or known[k].default != v}
    for key, usual in _PLAIN.items():
        if key in kept and key in known and known[key].default is None and all(v == usual for v in kept[key]):
            del kept[key]
    weights = _WEIGHTS.get((node.domain, node.op))
    if weights is not None and ed.value(node.inputs[weights]) is not None:
        kept.pop("kernel_shape", None)
    if kept.get("activation") == "Relu" and (node.domain, node.op) in PRODUCTS and _never_negative(ed, node):
        del kept["activation"]
    dropped = len(node.attrs) - len(kept)
    node.attrs = kept
    return dropped


def _never_negative(ed: Edit, node: Node) -> bool:
    """Whether a product's integers start at zero."""
    scale, zero = (node.inputs[i] if len(node.inputs) > i else "" for i in (Y, Y + 1))
    point = ed.value(zero) if scale and zero else None
    dtype = ed.shapes.dtype(zero) if zero else None
    return point is not None and point.size == 1 and dtype in RANGES and int(point.reshape(-1)[0]) == RANGES[dtype][0]
