"""Multiplies by one factor after another rather than by their outer product, and averages squares as they are read.

    x * (a * b)             ->    (x * a) * b               where a * b is as large as x, and a and b are small
    ReduceMean(x * x)       ->    ReduceSumSquare(x) / n

What was spread over all of x is then never in memory.
"""

from __future__ import annotations

import math

import numpy as np

from evort.graph import Graph, Node
from evort.types import STORAGE
from evort_tools.passes.edit import Context, Edit


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    return sum(_one_after_another(ed, node) or _squares(ed, node) for node in ed.nodes())


def _factors(ed: Edit, name: str) -> list[str] | None:
    """The operands of a product that nothing else reads."""
    mul = ed.producer(name, "Mul")
    return None if mul is None or mul.attrs or not ed.single(name) else mul.inputs


def _one_after_another(ed: Edit, node: Node) -> bool:
    if node.op != "Mul" or not ed.is_real(node.outputs[0]):
        return False
    for x, other in (node.inputs, node.inputs[::-1]):
        factors = _factors(ed, other)
        if factors is None or ed.value(other) is not None or not ed.shapes.same_shape(x, node.outputs[0]):
            continue
        sizes = ed.shapes.sampled_shapes(*factors, x)
        if sizes is None or any(4 * (a + b) > n for a, b, n in zip(*(map(math.prod, s) for s in sizes), strict=True)):
            continue
        first, last = sorted(factors, key=lambda name: ed.value(name) is not None)  # what is constant may yet be fused
        ed.change(node, "Mul", [ed.insert(node, "Mul", [x, first]), last], node.attrs)
        return True
    return False


def _squares(ed: Edit, node: Node) -> bool:
    if node.op != "ReduceMean" or not ed.is_real(node.outputs[0]):
        return False
    factors = _factors(ed, node.inputs[0])
    if factors is None or factors[0] != factors[1]:
        return False
    sizes = ed.shapes.sampled_shapes(factors[0], node.outputs[0]) or ((), ())
    counts = {math.prod(x) / max(1, math.prod(y)) for x, y in zip(*sizes, strict=True)}
    if len(counts) != 1 or not min(counts) > 1:
        return False
    dtype = ed.shapes.dtype(node.outputs[0])
    share = ed.constant(np.array(1 / counts.pop(), STORAGE[dtype]), f"{node.outputs[0]}/share", dtype)
    total = ed.insert(node, "ReduceSumSquare", [factors[0], *node.inputs[1:]], node.attrs)
    ed.change(node, "Mul", [total, share])
    return True
