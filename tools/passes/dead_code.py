"""Drops nodes whose results nothing reads, outputs and inputs that nothing reads, and constants that no node uses."""

from __future__ import annotations

from evort.graph import Graph, Node
from evort.ops.base import find
from evort_tools.passes.edit import Context


def run(graph: Graph, ctx: Context) -> int:
    needed = set(graph.outputs)
    kept = []
    changes = 0
    for node in reversed(graph.nodes):
        if not any(name in needed for name in node.outputs if name):
            changes += 1
            continue
        kept.append(node)
        changes += _drop_operands(node, needed)
        needed.update(node.inputs)
        for sub in node.subgraphs():
            needed.update(sub.free_names())
    graph.nodes = kept[::-1]
    there = {*graph.inputs, *needed}.union(*(node.outputs for node in graph.nodes))
    for name, tensor in list(graph.tensors.items()):
        if tensor.data is not None and name not in needed:
            del graph.tensors[name]
            changes += 1
        elif name not in there:  # what was known of a tensor that is gone
            del graph.tensors[name]
    return changes


def _drop_operands(node: Node, needed: set[str]) -> int:
    """Unnames optional outputs that nothing reads, and inputs that the operator does not read: nothing computes them
    then."""
    definition = find(node.op, node.domain)
    if definition is None:
        return 0
    changes = 0
    for i, (name, formal) in enumerate(zip(node.outputs, definition.outputs, strict=False)):
        if name and name not in needed and formal.endswith("?"):
            node.outputs[i] = ""
            changes += 1
    for i, (name, formal) in enumerate(zip(node.inputs, definition.inputs, strict=False)):
        if name and formal in definition.unread:
            node.inputs[i] = ""
            changes += 1
    while len(node.outputs) > definition.arity[2] and not node.outputs[-1]:
        node.outputs.pop()
    while len(node.inputs) > definition.arity[0] and not node.inputs[-1]:
        node.inputs.pop()
    return changes
