"""Computes a product and a sum with constants of each channel in one step: x * s + t -> BatchNormalization."""

from __future__ import annotations

import numpy as np

from evort.graph import Graph, Node
from evort.types import STORAGE
from evort_tools.passes.edit import Context, Edit
from evort_tools.passes.linear import per_channel


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    return sum(_fold(ed, node) for node in list(graph.nodes) if node.op in ("Add", "Sub") and not node.domain)


def _fold(ed: Edit, node: Node) -> bool:
    for at, name in enumerate(node.inputs[:2]):
        mul = ed.producer(name, "Mul", "Div")
        if mul is None or mul.attrs or node.attrs or not ed.single(name) or (node.op == "Sub" and at == 1):
            continue
        shift = _channels(ed, node, node.inputs[1 - at])
        for x, factor in (mul.inputs, mul.inputs[::-1]) if mul.op == "Mul" else (mul.inputs,):
            scale = _channels(ed, node, factor)
            if scale is None or shift is None or not ed.shapes.same_shape(x, node.outputs[0]):
                continue
            if mul.op == "Div" and not scale.all():
                continue
            scale = scale if mul.op == "Mul" else 1 / scale
            return _become(ed, node, x, scale, shift if node.op == "Add" else -shift)
    return False


def _channels(ed: Edit, node: Node, name: str) -> np.ndarray | None:
    """A constant operand, one number for each index of axis 1."""
    dims, value = ed.shapes.shape(node.outputs[0]), ed.real(name)
    if dims is None or value is None or len(dims) < 2 or not isinstance(dims[1], int):
        return None
    return per_channel(value, dims[1], 1, len(dims))


def _become(ed: Edit, node: Node, x: str, scale: np.ndarray, shift: np.ndarray) -> bool:
    dtype = ed.shapes.dtype(x)
    values = (scale, shift, np.zeros_like(scale), np.ones_like(scale))
    names = ("scale", "shift", "mean", "variance")
    inputs = [ed.constant(v.astype(STORAGE[dtype]), f"{node.outputs[0]}/{what}", dtype)
              for v, what in zip(values, names, strict=True)]  # fmt: skip
    ed.change(node, "BatchNormalization", [x, *inputs], {"epsilon": 0.0})
    return True
