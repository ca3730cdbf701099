"""Puts the branch of an If whose condition is constant in its place."""

from __future__ import annotations

from evort.graph import Graph, Node
from evort_tools.passes.edit import Context


def run(graph: Graph, ctx: Context) -> int:
    changes = 0
    nodes: list[Node] = []
    for node in graph.nodes:
        condition = ctx.shapes.value(node.inputs[0]) if node.op == "If" and not node.domain else None
        if condition is None or condition.size != 1:
            nodes.append(node)
            continue
        branch = node.attrs["then_branch" if condition.reshape(-1)[0] else "else_branch"]
        # Names are unique in all graphs of a model, so the branch moves as it is.
        nodes += branch.nodes
        graph.tensors.update({name: t for name, t in branch.tensors.items() if t.data is not None})
        for outer, inner in zip(node.outputs, branch.outputs, strict=False):
            if outer:
                nodes.append(Node("Identity", [inner], [outer], name=node.name))
                ctx.shapes.infer(nodes[-1], graph is ctx.top)
        changes += 1
    graph.nodes = nodes
    return changes
