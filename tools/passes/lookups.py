"""Reads rows of tables where exporters multiply with one-hot matrices, and computes on the table instead of its rows.

MatMul(Cast(Equal(i, [0, 1, ..., n - 1])), W)  ->  Gather(W with a row of zeros, Clip(i, -1, n))
Gelu(Add(Gather(W, i), b))                     ->  Gather(Gelu(Add(W, b)), i)
"""

from __future__ import annotations

import numpy as np

from evort.graph import Graph, Node
from evort.types import DType
from evort_tools.passes.edit import Context, Edit

# Elementwise operators of one tensor, and of a tensor and a constant.
UNARY = frozenset({"Abs", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg",
                   "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Swish", "Tanh"})  # fmt: skip
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    changes = 0
    for node in ed.nodes():
        if node.op == "MatMul":
            changes += _one_hot(ed, node)
        elif node.op in UNARY or node.op in BINARY:
            changes += _on_table(ed, node)
    return changes


def _one_hot(ed: Edit, node: Node) -> bool:
    """An index that is no row of the table selects nothing, so the product is zero there: it reads a row of zeros."""
    table = ed.real(node.inputs[1])
    cast = ed.producer(node.inputs[0], "Cast")
    equal = ed.producer(cast.inputs[0], "Equal") if cast is not None else None
    if table is None or table.ndim != 2 or equal is None or len(node.inputs) > 2 or node.attrs:
        return False
    for index, numbers in (equal.inputs, equal.inputs[::-1]):
        iota, dtype = ed.value(numbers), ed.shapes.dtype(index)
        if iota is None or dtype not in (DType.INT32, DType.INT64) or iota.shape[-1:] != (len(table),):
            continue
        shapes = ed.shapes.sampled_shapes(index, equal.outputs[0])
        if shapes is None or not np.array_equal(iota.reshape(-1), np.arange(len(table))):
            continue
        if any(not g or g[-1] != 1 or m != (*g[:-1], len(table)) for g, m in zip(*shapes, strict=True)):
            continue
        limits = [ed.constant(np.array(v, iota.dtype), "limit", dtype) for v in (-1, len(table))]
        known = np.concatenate([table, np.zeros((1, table.shape[1]), table.dtype)])
        rows = ed.constant(known, f"{node.inputs[1]}/rows", ed.shapes.dtype(node.inputs[1]))
        last = ed.constant(np.array([-1], np.int64), "axes")
        flat = ed.insert(node, "Squeeze", [index, last])
        ed.change(node, "Gather", [rows, ed.insert(node, "Clip", [flat, *limits])])
        return True
    return False


def _on_table(ed: Edit, node: Node) -> bool:
    """An elementwise operator of rows of a constant table, with a constant that is the same for all rows."""
    for at, x in enumerate(node.inputs[:2]):
        gather = ed.producer(x, "Gather")
        if gather is None or not ed.single(x) or gather.attrs.get("axis", 0) != 0 or ed.real(gather.inputs[0]) is None:
            continue
        table = ed.real(gather.inputs[0])
        if len(ed.users(gather.inputs[0])) > 1:
            continue
        # A table of which few rows are read is not worth the work, but costs nothing: it is done once, here.
        inputs = list(node.inputs)
        if node.op in BINARY:
            other = ed.value(inputs[1 - at])
            if other is None or len(inputs) > 2 or not ed.shapes.same_shape(x, node.outputs[0]):
                return False
            row = table.shape[1:]
            extra = other.ndim - len(row)
            if any(d != 1 for d in other.shape[: max(extra, 0)]):
                return False
            inputs[1 - at] = ed.constant(other.reshape(other.shape[max(extra, 0) :]), f"{x}/operand",
                                         ed.shapes.dtype(inputs[1 - at]))  # fmt: skip
        inputs[at] = gather.inputs[0]
        made = ed.insert(node, node.op, inputs, node.attrs)
        ed.change(node, "Gather", [made, gather.inputs[1]], gather.attrs)
        return True
    return False
