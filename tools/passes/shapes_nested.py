"""Inference through If, Loop and Scan: their bodies' tensors get facts, and the nodes' outputs from those."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evort.errors import ShapeError
from evort.graph import Graph, Node
from evort.types import DType
from evort_tools.passes.facts import Fact

if TYPE_CHECKING:
    from evort_tools.passes.shapes import Shapes


def infer_nested(shapes: Shapes, node: Node, ins: list[Fact | None]) -> list[Fact] | None:
    """Facts of the outputs of a node with nested graphs, None where nothing is known."""
    body = node.attrs.get("body")
    if not node.domain and node.op == "If":
        return _if(shapes, node)
    if not node.domain and node.op == "Loop" and isinstance(body, Graph):
        return _loop(shapes, body, ins)
    if not node.domain and node.op == "Scan" and isinstance(body, Graph):
        return _scan(shapes, node, body, ins)
    for graph in node.subgraphs():
        _declare(shapes, graph, [None] * len(graph.inputs))
        shapes.graph(graph, top=False)
    return None


def _if(shapes: Shapes, node: Node) -> list[Fact] | None:
    branches = [node.attrs.get("then_branch"), node.attrs.get("else_branch")]
    graphs = [g for g in branches if isinstance(g, Graph)]
    for graph in graphs:
        # A branch need not fit the shapes that take the other one.
        known = set(shapes.problems)
        shapes.graph(graph, top=False)
        for key in set(shapes.problems) - known:
            if isinstance(shapes.problems[key][0], ShapeError):
                del shapes.problems[key]
    if len(graphs) != 2 or any(len(g.outputs) < len(node.outputs) for g in graphs):
        return None
    pairs = zip(*(g.outputs for g in graphs), strict=False)
    return [_common(shapes.facts.get(a), shapes.facts.get(b)) for a, b in pairs]


def _common(a: Fact | None, b: Fact | None) -> Fact:
    """What two facts agree on."""
    if a is None or b is None or a.dtype != b.dtype:
        return Fact(None)
    fact = Fact(a.dtype)
    live = tuple(k for k in a.live if k in b.live)
    if a.shapes is not None and b.shapes is not None and live and all(a.shape(k) == b.shape(k) for k in live):
        fact.shapes, fact.opaque_shape, fact.live = a.shapes, a.opaque_shape or b.opaque_shape, live
    return fact


def _shape_only(fact: Fact | None, dtype: DType | None = None) -> Fact:
    """A fact without its value, which changes from turn to turn."""
    if fact is None or fact.dtype is None:
        return Fact(dtype)
    copy = Fact(fact.dtype, fact.shapes)
    copy.opaque_shape, copy.live = fact.opaque_shape, fact.live
    return copy


def _declare(shapes: Shapes, graph: Graph, given: list[Fact | None]) -> None:
    """Facts of a body's inputs: what is passed to it, else the declared element type."""
    for name, fact in zip(graph.inputs, given, strict=False):
        declared = graph.tensors.get(name)
        shapes.facts[name] = _shape_only(fact, None if declared is None else declared.dtype)


def _loop(shapes: Shapes, body: Graph, ins: list[Fact | None]) -> list[Fact]:
    carried = list(ins[2:])
    head = []
    for name, dtype in zip(body.inputs[:2], (DType.INT64, DType.BOOL), strict=False):
        # A counter that is declared of rank 1 is given as such.
        declared = body.tensors.get(name)
        rank = len(declared.shape) if declared is not None and declared.shape is not None else 0
        head.append(Fact(dtype, [(1,) * rank]))
    # A carried value keeps its shape only where the body gives it back with that shape. Suppose so for all, drop those
    # that do not, and repeat until what is left holds.
    settled = False
    while not settled:
        settled = True
        _declare(shapes, body, [*head, *carried])
        shapes.graph(body, top=False)
        results = [shapes.facts.get(name) for name in body.outputs[1:]]
        for i, (before, after) in enumerate(zip(carried, results, strict=False)):
            if before is not None and before.shapes is not None and (after is None or after.shapes != before.shapes):
                carried[i] = Fact(before.dtype)
                settled = False
    # Scanned outputs are as long as the loop runs.
    return [
        _shape_only(carried[i]) if i < len(carried) else Fact(None if fact is None else fact.dtype)
        for i, fact in enumerate(results)
    ]


def _scan(shapes: Shapes, node: Node, body: Graph, ins: list[Fact | None]) -> list[Fact] | None:
    count = node.attrs.get("num_scan_inputs")
    if not isinstance(count, int) or not 0 < count <= len(ins):
        return None
    states, scans = ins[: len(ins) - count], ins[len(ins) - count :]
    slices: list[Fact] = []
    lengths: list[int] | None = None
    for fact, axis in zip(scans, node.attrs.get("scan_input_axes") or [0] * count, strict=False):
        if fact is None or fact.shapes is None or any(not -len(s) <= axis < len(s) for s in fact.shapes):
            slices.append(Fact(None if fact is None else fact.dtype))
            continue
        cut = Fact(fact.dtype, [tuple(d for i, d in enumerate(s) if i != axis % len(s)) for s in fact.shapes])
        cut.opaque_shape, cut.live = fact.opaque_shape, fact.live
        if not fact.opaque_shape:
            lengths = [s[axis] for s in fact.shapes]
        slices.append(cut)
    _declare(shapes, body, [*states, *slices])
    shapes.graph(body, top=False)
    axes = node.attrs.get("scan_output_axes") or [0] * len(body.outputs)
    outs = []
    for i, name in enumerate(body.outputs):
        fact = shapes.facts.get(name)
        if fact is None:
            outs.append(Fact(None))
        elif i >= len(states):
            outs.append(_stacked(fact, lengths, axes[i - len(states)]))
        else:
            same = states[i] is not None and states[i].shapes is not None and states[i].shapes == fact.shapes
            outs.append(_shape_only(fact) if same else Fact(fact.dtype))
    return outs


def _stacked(fact: Fact, lengths: list[int] | None, axis: int) -> Fact:
    out = Fact(fact.dtype)
    if fact.shapes is None or lengths is None:
        return out
    out.shapes, out.opaque_shape, out.live = [], fact.opaque_shape, fact.live
    for k in range(max(len(lengths), len(fact.shapes))):
        shape = list(fact.shape(k))
        shape.insert(axis if axis >= 0 else len(shape) + 1 + axis, lengths[k % len(lengths)])
        out.shapes.append(tuple(shape))
    return out
