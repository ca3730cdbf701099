"""Topological order of ONNX nodes, which some exporters do not keep, and the names that they read."""

from __future__ import annotations

import heapq

from onnx import AttributeProto, GraphProto, NodeProto

_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def reads(proto: GraphProto) -> set[str]:
    """All names that a graph's nodes, nested graphs and outputs read (some of them its own)."""
    found = {o.name for o in proto.output}
    for node in proto.node:
        found |= node_reads(node)
    return found


def node_reads(node: NodeProto) -> set[str]:
    """Names that a node reads, its nested graphs included."""
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.type in _GRAPHS:
            for graph in (attribute.g, *attribute.graphs):
                found |= reads(graph)
    return found


def sorted_nodes(nodes: list[NodeProto]) -> tuple[list[NodeProto], list[NodeProto]]:
    """The nodes in an order where each comes after those that it reads from, as close to the given one as that allows;
    and those that lie on a cycle."""
    writer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits = [0] * len(nodes)
    readers: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        for source in {writer[name] for name in node_reads(node) if name in writer}:
            waits[i] += 1
            readers[source].append(i)
    ready = [i for i, count in enumerate(waits) if not count]
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for reader in readers[i]:
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, reader)
    left = set(range(len(nodes))) - set(order)
    return [nodes[i] for i in order], [nodes[i] for i in sorted(left)]
