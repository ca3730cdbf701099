"""Merges nodes that compute the same from the same (common subexpressions)."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from evort.graph import Graph, Node
from evort.ops.base import find
from evort_tools.passes.edit import Context, Edit


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    seen: dict[Hashable, Node] = {}
    changes = 0
    for node in list(graph.nodes):
        definition = find(node.op, node.domain)
        if definition is None or not definition.deterministic or any(True for _ in node.subgraphs()):
            continue
        key = (node.domain, node.op, tuple(node.inputs), attrs_key(node), tuple(map(bool, node.outputs)))
        first = seen.setdefault(key, node)
        if first is node:
            continue
        if node.op == "Identity" and any(o in ed.outputs for o in node.outputs):
            continue  # one of two outputs that are the same tensor
        # Two outputs of the graph need two writers.
        both = any(a in ed.outputs and b in ed.outputs for a, b in zip(first.outputs, node.outputs, strict=True))
        if both or (len(node.outputs) > 1 and any(o in ed.outputs for o in node.outputs)):
            continue
        for out, same in zip(list(node.outputs), list(first.outputs), strict=True):
            if out:
                ed.bypass(node, same, node.outputs.index(out))
        changes += 1
    return changes


def attrs_key(node: Node) -> Hashable:
    """A node's attributes, graphs excepted, as something to compare."""
    return tuple(sorted((key, _frozen(value)) for key, value in node.attrs.items()))


def _frozen(value: object) -> Hashable:
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes() if value.dtype != object else tuple(value.reshape(-1)))
    if isinstance(value, list | tuple):
        return tuple(value)
    return (type(value).__name__, value)
