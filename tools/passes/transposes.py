"""Moves a Transpose behind the elementwise operators that follow it, where another Transpose takes it back."""

from __future__ import annotations

import numpy as np

from evort.graph import Graph, Node
from evort_tools.passes.edit import Context, Edit
from evort_tools.passes.lookups import BINARY, UNARY

_UNARY = UNARY | {"Ceil", "Floor", "Not", "Reciprocal", "Round", "Sign"}


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    changes = 0
    for node in ed.nodes():
        if node.op in BINARY:
            changes += _both(ed, node)
        elif node.op == "Transpose":
            changes += _sink(ed, node)
    return changes


def _perm(ed: Edit, node: Node) -> list[int] | None:
    perm = node.attrs.get("perm")
    if perm is None:
        rank = ed.shapes.rank(node.inputs[0])
        return None if rank is None else list(range(rank))[::-1]
    return list(perm)


def _both(ed: Edit, node: Node) -> bool:
    """Add(Transpose(a), Transpose(b)) -> Transpose(Add(a, b)), where a and b have one rank."""
    first, second = (ed.producer(name, "Transpose") for name in node.inputs[:2])
    if first is None or second is None or first is second or len(node.inputs) > 2:
        return False
    perm = _perm(ed, first)
    if perm is None or perm != _perm(ed, second) or not all(ed.single(name) for name in node.inputs):
        return False
    inner = ed.insert(node, node.op, [first.inputs[0], second.inputs[0]], node.attrs)
    ed.change(node, "Transpose", [inner], {"perm": perm})
    return True


def _sink(ed: Edit, node: Node) -> bool:
    """Transpose, elementwise operators, Transpose: the first goes behind the operators, where both become one."""
    perm = _perm(ed, node)
    if perm is None:
        return False
    chain = []
    name = node.outputs[0]
    while True:
        user = ed.only_user(name)
        if user is None or user.domain or not user.outputs:
            return False
        if user.op == "Transpose":
            break
        if not _follows(ed, user, name, len(perm)):
            return False
        chain.append((user, name))
        name = user.outputs[0]
    if not chain:
        return False  # two in a row are joined by `identities`
    x = node.inputs[0]
    last = user
    for op, source in chain:
        inputs = [x if n == source else _moved(ed, n, perm) for n in op.inputs]
        if op.op in ("Clip", "Cast"):
            inputs = [x, *op.inputs[1:]]
        x = ed.insert(last, op.op, inputs, op.attrs)
    own = _perm(ed, last)
    ed.change(last, "Transpose", [x], {"perm": [perm[p] for p in own]})
    return True


def _follows(ed: Edit, node: Node, name: str, rank: int) -> bool:
    """Whether a node works element by element on a tensor, any other operand being a constant that can be moved."""
    if node.op in ("Clip", "Cast"):
        return node.inputs[0] == name
    if node.op in _UNARY:
        return len(node.inputs) == 1
    if node.op not in BINARY and node.op != "PRelu":
        return False
    if len(node.inputs) != 2 or (node.op == "PRelu" and node.inputs[0] != name):
        return False
    other = node.inputs[1 if node.inputs[0] == name else 0]
    value = ed.value(other)
    return value is not None and value.ndim <= rank and ed.shapes.same_shape(name, node.outputs[0])


def _moved(ed: Edit, name: str, perm: list[int]) -> str:
    """A constant operand as it goes with the tensor before the Transpose."""
    value = ed.value(name)
    if value.ndim == 0 or value.size == 1:
        return name
    full = value.reshape((1,) * (len(perm) - value.ndim) + value.shape)
    return ed.constant(np.ascontiguousarray(full.transpose(np.argsort(perm))), f"{name}/moved", ed.shapes.dtype(name))
