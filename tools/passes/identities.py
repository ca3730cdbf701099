"""Takes out what changes nothing, and joins casts, clips and reshapes of the same tensor."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from evort.graph import Graph, Node
from evort.types import INTS, SIGNED_INTS, DType
from evort_tools.passes.edit import Context, Edit

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
# Operators that give their first input back where the output has its shape.
_RESHAPED = frozenset({*VIEWS, "Expand", "Tile"})


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    changes = 0
    for node in ed.nodes():
        rule = RULES.get(node.op)
        if rule is not None:
            changes += bool(rule(ed, node))
    return changes


Rule = Callable[[Edit, Node], bool]
RULES: dict[str, Rule] = {}


def _rule(*ops: str) -> Callable[[Rule], Rule]:
    def decorate(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return decorate


def _same(ed: Edit, node: Node) -> bool:
    """Whether the output has the first input's shape."""
    return ed.shapes.same_shape(node.inputs[0], node.outputs[0])


def _absent(node: Node, index: int) -> bool:
    return index >= len(node.inputs) or not node.inputs[index]


@_rule("Identity")
def _identity(ed: Edit, node: Node) -> bool:
    return ed.bypass(node, node.inputs[0])


@_rule("Dropout")
def _dropout(ed: Edit, node: Node) -> bool:
    training = None if _absent(node, 2) else ed.value(node.inputs[2])
    if any(node.outputs[1:]) or not (_absent(node, 2) or (training is not None and not training.any())):
        return False
    return ed.bypass(node, node.inputs[0])


@_rule(*_RESHAPED)
def _reshaped(ed: Edit, node: Node) -> bool:
    if _same(ed, node):
        return ed.bypass(node, node.inputs[0])
    if node.op not in VIEWS:
        return False
    # A view of a view is a view of what that looks at.
    inner = ed.producer(node.inputs[0], *VIEWS)
    if inner is None:
        return False
    target = _target(ed, node.outputs[0])
    if target is None:
        return False
    ed.change(node, "Reshape", [inner.inputs[0], ed.constant(target, f"{node.outputs[0]}/shape")])
    return True


def _target(ed: Edit, name: str) -> np.ndarray | None:
    """A constant to reshape to a tensor's shape with, where at most one of its sizes is not known."""
    dims = ed.shapes.shape(name)
    if dims is None or 0 in dims or sum(isinstance(d, str) for d in dims) > 1:
        return None
    return np.array([-1 if isinstance(d, str) else d for d in dims], np.int64)


@_rule("Slice")
def _slice(ed: Edit, node: Node) -> bool:
    steps = np.ones(1) if _absent(node, 4) else ed.value(node.inputs[4])
    return steps is not None and bool((steps == 1).all()) and _same(ed, node) and ed.bypass(node, node.inputs[0])


@_rule("Pad")
def _pad(ed: Edit, node: Node) -> bool:
    pads = ed.value(node.inputs[1])
    return pads is not None and not pads.any() and ed.bypass(node, node.inputs[0])


@_rule("Concat", "Sum", "Max", "Min", "Mean")
def _one_operand(ed: Edit, node: Node) -> bool:
    if len(node.inputs) == 1:
        return ed.bypass(node, node.inputs[0])
    if node.op == "Concat":
        return _without_empty(ed, node)
    return node.op in ("Max", "Min") and len(node.inputs) == 2 and _bound(ed, node)


def _without_empty(ed: Edit, node: Node) -> bool:
    """Drops parts of a Concat that have no elements."""
    full = [n for n in node.inputs if (dims := ed.shapes.shape(n)) is None or dims[node.attrs["axis"]] != 0]
    if len(full) == len(node.inputs) or not full:
        return False
    ed.change(node, "Concat", full, node.attrs)
    return True


def _bound(ed: Edit, node: Node) -> bool:
    """Max with a number is Clip from below, Min from above."""
    for x, limit in (node.inputs, node.inputs[::-1]):
        value = ed.scalar(limit, x)
        if value is None or math.isnan(value) or not ed.is_real(x) or not ed.shapes.same_shape(x, node.outputs[0]):
            continue
        if node.op == "Max" and value == 0:
            ed.change(node, "Relu", [x])
        else:
            bound = ed.value(limit)
            if bound.ndim:
                limit = ed.constant(bound.reshape(()), f"{limit}/scalar")
            ed.change(node, "Clip", [x, limit] if node.op == "Max" else [x, "", limit])
        return True
    return False


@_rule("Split")
def _split(ed: Edit, node: Node) -> bool:
    return len(node.outputs) == 1 and _same(ed, node) and ed.bypass(node, node.inputs[0])


@_rule("Transpose")
def _transpose(ed: Edit, node: Node) -> bool:
    rank = ed.shapes.rank(node.inputs[0])
    perm = node.attrs.get("perm") or (list(range(rank))[::-1] if rank is not None else None)
    if perm is None:
        return False
    if perm == sorted(perm):
        return ed.bypass(node, node.inputs[0])
    inner = ed.producer(node.inputs[0], "Transpose")
    if inner is not None:
        first = inner.attrs.get("perm") or list(range(len(perm)))[::-1]
        ed.change(node, "Transpose", inner.inputs, {"perm": [first[p] for p in perm]})
        return True
    # Moving axes of length 1 moves no elements.
    dims = ed.shapes.shape(node.inputs[0])
    kept = [p for p in perm if dims is not None and dims[p] != 1]
    if dims is None or kept != sorted(kept):
        return False
    target = _target(ed, node.outputs[0])
    if target is None:
        return False
    ed.change(node, "Reshape", [node.inputs[0], ed.constant(target, f"{node.outputs[0]}/shape")])
    return True


# Arithmetic with 0 and 1


@_rule("Add", "Mul", "Sub", "Div", "Pow")
def _neutral(ed: Edit, node: Node) -> bool:
    if node.attrs:
        return False  # an activation
    neutral = 0 if node.op in ("Add", "Sub") else 1
    for at in (1, 0) if node.op in ("Add", "Mul") else (1,):
        x, value = node.inputs[1 - at], ed.value(node.inputs[at])
        numeric = value is not None and value.size and value.dtype.kind in "fiu"
        # A type that is held as bits has other ones.
        plain = ed.is_real(node.inputs[at]) or ed.shapes.dtype(node.inputs[at]) in INTS
        if numeric and plain and (value == neutral).all() and ed.shapes.same_shape(x, node.outputs[0]):
            return ed.bypass(node, x)
    return node.op == "Pow" and _square(ed, node)


def _square(ed: Edit, node: Node) -> bool:
    """x ** 2 is x * x."""
    x = node.inputs[0]
    if ed.scalar(node.inputs[1], x) != 2 or not ed.is_real(x) or not ed.shapes.same_shape(x, node.outputs[0]):
        return False
    ed.change(node, "Mul", [x, x])
    return True


# Casts

# What each type's numbers fit into without loss.
_WIDER: dict[DType, frozenset[DType]] = {
    DType.BOOL: INTS | {DType.FLOAT, DType.DOUBLE, DType.FLOAT16},
    DType.UINT8: frozenset({DType.UINT16, DType.INT16, DType.UINT32, DType.INT32, DType.UINT64, DType.INT64,
                            DType.FLOAT16, DType.FLOAT, DType.DOUBLE}),
    DType.INT8: frozenset({DType.INT16, DType.INT32, DType.INT64, DType.FLOAT16, DType.FLOAT, DType.DOUBLE}),
    DType.UINT16: frozenset({DType.UINT32, DType.INT32, DType.UINT64, DType.INT64, DType.FLOAT, DType.DOUBLE}),
    DType.INT16: frozenset({DType.INT32, DType.INT64, DType.FLOAT, DType.DOUBLE}),
    DType.UINT32: frozenset({DType.UINT64, DType.INT64, DType.DOUBLE}),
    DType.INT32: frozenset({DType.INT64, DType.DOUBLE}),
    DType.FLOAT16: frozenset({DType.FLOAT, DType.DOUBLE}),
    DType.FLOAT: frozenset({DType.DOUBLE}),
}  # fmt: skip


@_rule("Cast", "CastLike")
def _cast(ed: Edit, node: Node) -> bool:
    x = node.inputs[0]
    source, to = ed.shapes.dtype(x), ed.shapes.dtype(node.outputs[0])
    if source is None or to is None:
        return False
    if source == to:
        return ed.bypass(node, x)
    if node.op == "CastLike":
        ed.change(node, "Cast", [x], {"to": int(to), **node.attrs})
        return True
    inner = ed.producer(x, "Cast")
    if inner is None:
        return False
    first = ed.shapes.dtype(inner.inputs[0])
    if source in _WIDER.get(first, ()) and (first != DType.BOOL or to in INTS | {DType.FLOAT, DType.DOUBLE}):
        ed.set_input(node, 0, inner.inputs[0])
        return True
    return False


# Clips


def bounds(ed: Edit, node: Node) -> tuple[float, float] | None:
    """The bounds of a Clip or Relu on real numbers, None where they are not known."""
    if not ed.is_real(node.inputs[0]):
        return None
    if node.op == "Relu":
        return 0.0, math.inf
    found = [-math.inf, math.inf]
    for index in (1, 2):
        if not _absent(node, index):
            value = ed.scalar(node.inputs[index])
            if value is None or math.isnan(value):
                return None
            found[index - 1] = value
    return found[0], found[1]


@_rule("Clip", "Relu")
def _clip(ed: Edit, node: Node) -> bool:
    own = bounds(ed, node)
    if own is None or node.attrs:
        return False
    if own == (-math.inf, math.inf):
        return ed.bypass(node, node.inputs[0])
    inner = ed.producer(node.inputs[0], "Clip", "Relu")
    first = bounds(ed, inner) if inner is not None and not inner.attrs else None
    if first is None or first[0] > first[1] or own[0] > own[1]:
        if node.op == "Clip" and own == (0.0, math.inf):
            ed.change(node, "Relu", node.inputs[:1])
            return True
        return False
    # A clip of a clip goes from where it takes the smallest number to where it takes the largest.
    low, high = (min(max(v, own[0]), own[1]) for v in first)
    dtype = ed.value(node.inputs[1] or node.inputs[2]).dtype if node.op == "Clip" else None
    if (low, high) == (0.0, math.inf):
        ed.change(node, "Relu", inner.inputs[:1])
        return True
    if dtype is None:
        dtype = ed.value(inner.inputs[1] if not _absent(inner, 1) else inner.inputs[2]).dtype
    names = ["" if math.isinf(v) else ed.constant(np.array(v, dtype), f"{node.outputs[0]}/{what}")
             for v, what in ((low, "min"), (high, "max"))]  # fmt: skip
    ed.change(node, "Clip", [inner.inputs[0], *names])
    return True


# Logic


@_rule("Where")
def _where(ed: Edit, node: Node) -> bool:
    condition = ed.value(node.inputs[0])
    if condition is None or not condition.size or condition.min() != condition.max():
        return False
    chosen = node.inputs[1 if condition.reshape(-1)[0] else 2]
    return ed.shapes.same_shape(chosen, node.outputs[0]) and ed.bypass(node, chosen)


@_rule("Abs")
def _abs(ed: Edit, node: Node) -> bool:
    inner = ed.producer(node.inputs[0], "Abs", "Sqrt", "Relu", "Exp", "Sigmoid")
    return inner is not None and not inner.attrs and ed.bypass(node, node.inputs[0])


@_rule("Neg")
def _neg(ed: Edit, node: Node) -> bool:
    inner = ed.producer(node.inputs[0], "Neg")
    exact = ed.is_real(node.inputs[0]) or ed.shapes.dtype(node.inputs[0]) in SIGNED_INTS
    return inner is not None and exact and ed.bypass(node, inner.inputs[0])
