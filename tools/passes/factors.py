"""Takes a common factor out of a sum, x + x * g -> x * (1 + g), where g is smaller than x."""

from __future__ import annotations

import math

import numpy as np

from evort.graph import Graph, Node
from evort.types import STORAGE
from evort_tools.passes.edit import Context, Edit


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    return sum(_factor(ed, node) for node in list(graph.nodes) if node.op == "Add" and not node.domain)


def _factor(ed: Edit, node: Node) -> bool:
    if node.attrs or not ed.is_real(node.outputs[0]):
        return False
    for x, other in (node.inputs, node.inputs[::-1]):
        mul = ed.producer(other, "Mul")
        if mul is None or mul.attrs or not ed.single(other) or x not in mul.inputs:
            continue
        gate = mul.inputs[1 - mul.inputs.index(x)]
        sizes = ed.shapes.sampled_shapes(gate, x)
        if sizes is None or not ed.shapes.same_shape(x, other) or ed.value(gate) is not None:
            continue
        if 4 * sum(map(math.prod, sizes[0])) <= sum(map(math.prod, sizes[1])):
            one = ed.constant(np.ones((), STORAGE[ed.shapes.dtype(x)]), "one", ed.shapes.dtype(x))
            ed.change(node, "Mul", [x, ed.insert(node, "Add", [gate, one])])
            return True
    return False
