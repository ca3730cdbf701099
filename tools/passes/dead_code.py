"""Drops nodes whose results nothing reads, outputs that nothing reads, and constants that no node uses."""

from __future__ import annotations

from evort.graph import Graph
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
        changes += _drop_outputs(node.op, node.domain, node.outputs, needed)
        needed.update(node.inputs)
        for sub in node.subgraphs():
            needed.update(sub.free_names())
    graph.nodes = kept[::-1]
    for name in [n for n, t in graph.tensors.items() if t.data is not None and n not in needed]:
        del graph.tensors[name]
        changes += 1
    return changes


def _drop_outputs(op: str, domain: str, outputs: list[str], needed: set[str]) -> int:
    """Unnames optional outputs that nothing reads, so that nothing computes them."""
    definition = find(op, domain)
    if definition is None:
        return 0
    changes = 0
    for i, (name, formal) in enumerate(zip(outputs, definition.outputs, strict=False)):
        if name and name not in needed and formal.endswith("?"):
            outputs[i] = ""
            changes += 1
    while outputs and not outputs[-1]:
        outputs.pop()
    return changes
