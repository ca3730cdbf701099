"""Computes what depends on constants only, with the operators' own references."""

from __future__ import annotations

import numpy as np

from evort.errors import EvortError
from evort.graph import Graph, Node
from evort.ops.base import Call, DataDependent, NeedsValue, complete_attrs, find
from evort.ops.run import OBJECTS, run_reference
from evort.types import STORAGE, Spec
from evort_tools.passes.edit import Context, Edit

# Operators that only repeat or fill: their results are large for what they say, and cheap to make anew.
_FILLS = frozenset({"ConstantOfShape", "Expand", "EyeLike", "OneHot", "Pad", "Range", "Resize", "Tile"})


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    changes = 0
    for node in list(graph.nodes):
        if any(name in ed.outputs for name in node.outputs) and node.op == "Identity":
            continue
        if any(True for _ in node.subgraphs()):
            continue
        if node.op == "DequantizeLinear" and not node.domain and not ctx.fold_weights:
            continue
        results = _known(node, ctx)
        if results is None:
            results = computed(node, ctx, ed)
        if results is None:
            continue
        named = [(name, value) for name, value in zip(node.outputs, results, strict=False) if name]
        if any(name in ed.outputs for name, _ in named):
            if len(named) > 1:
                continue
            # A graph's output stays what a node writes.
            name, value = named[0]
            ed.change(node, "Identity", [ed.constant(value, f"{name}/value", ctx.shapes.dtype(name))])
        else:
            for name, value in named:
                ed.replace_uses(name, ed.constant(value, f"{name}/value", ctx.shapes.dtype(name)))
            for name, _ in named:
                ed.prune(name)
        changes += 1
    return changes


def _known(node: Node, ctx: Context) -> list[np.ndarray | None] | None:
    """The outputs where inference found them all: shapes of tensors of known shape, and what follows from them."""
    definition = find(node.op, node.domain)
    if definition is None or not definition.deterministic:
        return None
    values = [ctx.shapes.value(name) if name else None for name in node.outputs]
    return None if any(v is None and name for v, name in zip(values, node.outputs, strict=True)) else values


def computed(node: Node, ctx: Context, ed: Edit) -> list[np.ndarray] | None:
    """The outputs of a node whose inputs are all constant, unless they would bloat the file."""
    definition = find(node.op, node.domain)
    if definition is None or not definition.deterministic:
        return None
    values = [ctx.shapes.value(name) if name else None for name in node.inputs]
    if any(v is None and name for v, name in zip(values, node.inputs, strict=True)):
        return None
    dtypes = [ctx.shapes.dtype(name) if name else None for name in node.inputs]
    ins = [None if v is None else Spec(d, v.shape, v) for v, d in zip(values, dtypes, strict=True)]
    try:
        c = Call(node, complete_attrs(definition, node), ins)
        c.outs = list(definition.infer(c))
        if any(s is not None and s.dtype in OBJECTS for s in (*ins, *c.outs)):
            return None
        made = sum(s.nbytes for s in c.outs if s is not None)
        read = sum(v.nbytes for v in values if v is not None)
        limit = ctx.fill_limit if node.op in _FILLS else ctx.fold_limit
        if made > max(limit, 2 * read):
            return None
        results = run_reference(definition, c, values)
    except (NeedsValue, DataDependent, EvortError):
        return None
    return [np.asarray(r).astype(STORAGE[s.dtype], copy=False).reshape(s.shape)
            for r, s in zip(results, c.outs, strict=False) if s is not None]  # fmt: skip
