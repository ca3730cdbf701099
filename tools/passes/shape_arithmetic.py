"""Replaces shapes that are computed while running by constants, as far as the sizes allow; drops writes of all indices.

Reshape(x, Concat(Gather(Shape(x), 0), 40, -1))  ->  Reshape(x, [0, 40, -1])
Shape(Relu(x))                                    ->  Shape(x), and then all alike are merged
ScatterND(data, every index in order, updates)    ->  Reshape(updates, Shape(data))
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from evort.errors import EvortError
from evort.graph import Graph, Node
from evort.ops.base import Call, DataDependent, NeedsValue, complete_attrs, find
from evort.ops.run import run_reference
from evort_tools.passes.edit import Context, Edit
from evort_tools.passes.facts import Fact

# Elements of an index tensor that `_all_indices` is willing to compute in each sample.
_MOST = 1 << 21


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    changes = 0
    first: dict[object, str] = {}
    for name in graph.inputs:
        _remember(ed, first, name)
    for node in list(graph.nodes):
        if not node.outputs or ed.writer.get(node.outputs[0]) is not node:
            continue
        if not node.domain:
            if node.op == "Reshape":
                changes += _reshape(ed, node)
            elif node.op == "Shape":
                changes += _shape(ed, node, first)
            elif node.op == "ScatterND":
                changes += _scatter(ed, node)
            elif node.op == "Gather":
                changes += _gather(ed, node)
            elif node.op == "Unsqueeze":
                changes += _unsqueeze(ed, node)
            elif node.op == "Concat":
                changes += _concat(ed, node)
        for name in node.outputs:
            _remember(ed, first, name)
    return changes


# Reshape


def _reshape(ed: Edit, node: Node) -> bool:
    """A computed target as a constant one: numbers, 0 for the input's size in that place, -1 for at most one other."""
    if ed.value(node.inputs[1]) is not None or node.attrs.get("allowzero", 0):
        return False
    elements = ed.shapes.elements(node.inputs[1])
    if elements is None:
        return False
    target = []
    shapes = ed.shapes.sampled_shapes(node.outputs[0], node.inputs[0])
    for i, element in enumerate(elements):
        if isinstance(element, int):
            # 0 copies, -1 is free, in the computed target as in a constant one.
            target.append(element)
        elif shapes is not None and all(i < len(b) and a[i] == b[i] for a, b in zip(*shapes, strict=True)):
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1:
        return False
    ed.set_input(node, 1, ed.constant(np.array(target, np.int64), f"{node.outputs[0]}/shape"))
    return True


# Shape


def _key(ed: Edit, name: str) -> object:
    """A varying shape, as something to look up; None for a fixed or unknown one."""
    fact = ed.shapes.facts.get(name)
    found = ed.shapes.sampled_shapes(name)
    if found is None or all(s == found[0][0] for s in found[0]):
        return None
    return ed.shapes.counts(fact), tuple(found[0])


def _remember(ed: Edit, first: dict[object, str], name: str) -> None:
    key = _key(ed, name) if name else None
    if key is not None:
        first.setdefault(key, name)


def _shape(ed: Edit, node: Node, first: dict[object, str]) -> bool:
    """The shape of a tensor is that of the first one with the same; so that shapes can be merged, and tensors that
    are only looked at for their shape are not computed."""
    filled = ed.producer(node.inputs[0], "ConstantOfShape")
    if filled is not None and not node.attrs:
        return ed.bypass(node, filled.inputs[0])
    source = first.get(_key(ed, node.inputs[0]))
    if source is None or source == node.inputs[0]:
        return False
    ed.set_input(node, 0, source)
    return True


def _gather(ed: Edit, node: Node) -> bool:
    """An element of a Concat of one-element parts is that part: Gather(Concat(a, b, c), 1) -> b."""
    index = ed.value(node.inputs[1])
    concat = ed.producer(node.inputs[0], "Concat")
    if index is None or index.size != 1 or concat is None or ed.shapes.rank(node.inputs[0]) != 1:
        return False
    sizes = [ed.shapes.shape(n) for n in concat.inputs]
    if any(s is None or len(s) != 1 or not isinstance(s[0], int) for s in sizes):
        return False
    at = int(index.reshape(-1)[0])
    total = sum(s[0] for s in sizes)
    at += total if at < 0 else 0
    for name, (size,) in zip(concat.inputs, sizes, strict=True):
        if at < size:
            if size != 1:
                ed.change(node, "Gather", [name, ed.constant(np.full(index.shape, at, np.int64), "index")], node.attrs)
            elif index.ndim == 1:
                return ed.bypass(node, name)
            elif index.ndim == 0:
                ed.change(node, "Squeeze", [name, ed.constant(np.zeros(1, np.int64), "axes")])
            else:
                return False
            return True
        at -= size
    return False


def _unsqueeze(ed: Edit, node: Node) -> bool:
    """Unsqueeze(Gather(x, i), 0) of a vector x -> Gather(x, [i])."""
    gather = ed.producer(node.inputs[0], "Gather")
    if gather is None or ed.shapes.rank(gather.inputs[0]) != 1 or ed.shapes.rank(node.inputs[0]) != 0:
        return False
    index = ed.value(gather.inputs[1])
    if index is None:
        return False
    at = ed.constant(index.reshape(1).astype(np.int64), f"{node.outputs[0]}/index")
    ed.change(node, "Gather", [gather.inputs[0], at])
    return True


def _concat(ed: Edit, node: Node) -> bool:
    """Joins neighbouring parts of a vector that are constants, or elements of one vector."""
    if ed.shapes.rank(node.outputs[0]) != 1:
        return False
    for left, right in pairwise(node.inputs):
        joined = _joined(ed, node, left, right)
        if joined:
            at = next(i for i, pair in enumerate(pairwise(node.inputs)) if pair == (left, right))
            ed.change(node, "Concat", [*node.inputs[:at], joined, *node.inputs[at + 2 :]], node.attrs)
            return True
    return False


def _joined(ed: Edit, node: Node, left: str, right: str) -> str:
    values = ed.value(left), ed.value(right)
    if values[0] is not None and values[1] is not None:
        return ed.constant(np.concatenate(values), f"{node.outputs[0]}/part", ed.shapes.dtype(left))
    first, second = ed.producer(left, "Gather"), ed.producer(right, "Gather")
    if first is None or second is None or first.inputs[0] != second.inputs[0] or first is second:
        return ""
    indices = ed.value(first.inputs[1]), ed.value(second.inputs[1])
    if any(i is None or i.ndim != 1 for i in indices) or ed.shapes.rank(first.inputs[0]) != 1:
        return ""
    both = ed.constant(np.concatenate([i.astype(np.int64) for i in indices]), f"{node.outputs[0]}/index")
    return ed.insert(node, "Gather", [first.inputs[0], both])


# ScatterND


def _scatter(ed: Edit, node: Node) -> bool:
    """Writing every element, in order, is a copy of the updates (what PyTorch makes of `a[:] = b`)."""
    if node.attrs.get("reduction", "none") != "none":
        return False
    fact = ed.shapes.facts.get(node.inputs[0])
    if fact is None or fact.shapes is None or fact.opaque_shape:
        return False
    samples = _Samples(ed, node.outputs[0])
    indices = samples.values(node.inputs[1])
    if indices is None or not all(_all_in_order(i, fact.shape(k)) for i, k in zip(indices, samples.live, strict=True)):
        return False
    if ed.shapes.same_shape(node.inputs[0], node.inputs[2]):
        return ed.bypass(node, node.inputs[2])
    shape = ed.insert(node, "Shape", [node.inputs[0]])
    ed.change(node, "Reshape", [node.inputs[2], shape])
    return True


def _all_in_order(indices: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether the rows of `indices` are the first axes' indices, all of them, ascending."""
    depth = indices.shape[-1] if indices.ndim else 0
    if not 0 < depth <= len(shape):
        return False
    want = np.indices(shape[:depth]).reshape(depth, -1).T
    return np.array_equal(indices.reshape(-1, depth), want)


class _Samples:
    """Values of tensors that depend on sizes only, in each sample that `name` is known in, computed as far as they are
    needed."""

    def __init__(self, ed: Edit, name: str):
        self.ed = ed
        fact = ed.shapes.facts.get(name)
        self.live = () if fact is None else ed.shapes.counts(fact)
        self.found: dict[str, list[np.ndarray] | None] = {}

    def values(self, name: str) -> list[np.ndarray] | None:
        """None where a value depends on more than sizes, is too large, or where nothing may be concluded from it."""
        fact = self.ed.shapes.facts.get(name)
        if fact is None or fact.shapes is None or fact.opaque_shape or fact.opaque_value or len(self.live) < 2:
            return None
        if name not in self.found:
            known = fact.values is not None
            self.found[name] = [fact.value(k) for k in self.live] if known else self._computed(name, fact)
        return self.found[name]

    def _computed(self, name: str, fact: Fact) -> list[np.ndarray] | None:
        node = self.ed.writer.get(name)
        if node is None or len(node.outputs) != 1 or any(math.prod(fact.shape(k)) > _MOST for k in self.live):
            return None
        definition = find(node.op, node.domain)
        if definition is None or not definition.deterministic or any(True for _ in node.subgraphs()):
            return None
        inputs = [self.values(n) if n else None for n in node.inputs]
        if any(v is None and n for v, n in zip(inputs, node.inputs, strict=True)):
            return None
        results = []
        for at, k in enumerate(self.live):
            specs = [self.ed.shapes.facts[n].spec(k) if n else None for n in node.inputs]
            given = [None if v is None else v[at] for v in inputs]
            for spec, value in zip(specs, given, strict=True):
                if spec is not None:
                    spec.value = value
            c = Call(node, complete_attrs(definition, node), specs)
            try:
                c.outs = list(definition.infer(c))
                results.append(np.asarray(run_reference(definition, c, given)[0]))
            except (EvortError, NeedsValue, DataDependent):
                return None
        return results
