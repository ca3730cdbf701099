"""Recognises normalizations that exporters write out: Layer-, Instance-, Group- and RMSNormalization, and Softmax."""

from __future__ import annotations

import math

import numpy as np

from evort.graph import Graph, Node
from evort.ops.base import find
from evort.types import STORAGE
from evort_tools.passes.edit import Context, Edit
from evort_tools.passes.patterns import close, offset, unary


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    changes = 0
    for rule, ops in (
        (_kept_axes, ("Reshape", "Unsqueeze")),
        (_mean, ("Mul", "Div")),
        (_softmax, ("Div",)),
        (_normalized, ("Div", "Mul")),
        (_group, ("Reshape",)),
        (_rows, ("Reshape",)),
        (_scale_and_shift, ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization")),
    ):
        for node in ed.nodes():
            if node.op in ops:
                changes += bool(ed.is_real(node.outputs[0]) and rule(ed, node))
    return changes


# Reductions


def _axes(ed: Edit, node: Node) -> tuple[int, ...] | None:
    """The axes of a reduction, in order; None where they are not known."""
    rank = ed.shapes.rank(node.inputs[0])
    if rank is None:
        return None
    if len(node.inputs) < 2 or not node.inputs[1]:
        return None if node.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))
    given = ed.value(node.inputs[1])
    if given is None or not given.size:
        return None
    return tuple(sorted(a % rank for a in given.reshape(-1).tolist()))


def _reduced(ed: Edit, name: str, op: str) -> tuple[str, tuple[int, ...], Node] | None:
    """(x, axes, node) of a reduction of x that keeps its axes."""
    node = ed.producer(name, op)
    if node is None or not node.attrs.get("keepdims", 1):
        return None
    axes = _axes(ed, node)
    return None if axes is None else (node.inputs[0], axes, node)


def _kept_axes(ed: Edit, node: Node) -> bool:
    """Reshape(Reduce(x; keepdims 0)) to x's shape with ones is Reduce(x; keepdims 1)."""
    reduce = ed.writer.get(node.inputs[0])
    if reduce is None or not reduce.op.startswith("Reduce") or reduce.domain or reduce.attrs.get("keepdims", 1):
        return False
    axes = _axes(ed, reduce)
    shapes = ed.shapes.sampled_shapes(reduce.inputs[0], node.outputs[0])
    if axes is None or shapes is None or not ed.single(node.inputs[0]):
        return False
    if any(tuple(1 if i in axes else d for i, d in enumerate(a)) != b for a, b in zip(*shapes, strict=True)):
        return False
    ed.change(node, reduce.op, reduce.inputs, {k: v for k, v in reduce.attrs.items() if k != "keepdims"})
    return True


def _mean(ed: Edit, node: Node) -> bool:
    """ReduceSum(x) * (1 / count) is ReduceMean(x)."""
    for x, other in (node.inputs, node.inputs[::-1]):
        reduce, factor = unary(ed, x, "ReduceSum"), ed.scalar(other, x)
        if reduce is None or not factor or node.attrs or (node.op == "Div" and x is not node.inputs[0]):
            continue
        axes, dims = _axes(ed, reduce), ed.shapes.shape(reduce.inputs[0])
        if axes is None or dims is None or any(isinstance(dims[a], str) for a in axes):
            continue
        count = math.prod(dims[a] for a in axes)
        if count and close(1 / factor if node.op == "Mul" else factor, count):
            ed.change(node, "ReduceMean", reduce.inputs, reduce.attrs)
            return True
    return False


# Softmax


def _softmax(ed: Edit, node: Node) -> bool:
    """Exp(x - ReduceMax(x)) / ReduceSum(Exp(x - ReduceMax(x)))."""
    exp = ed.producer(node.inputs[0], "Exp")
    total = _reduced(ed, node.inputs[1], "ReduceSum")
    if node.attrs or exp is None or total is None or total[0] != node.inputs[0] or len(total[1]) != 1:
        return False
    sub = ed.producer(exp.inputs[0], "Sub")
    if sub is None or sub.attrs:
        return False
    x = sub.inputs[0]
    most = _reduced(ed, sub.inputs[1], "ReduceMax")
    if most is None or most[0] != x or most[1] != total[1]:
        return False
    ed.change(node, "Softmax", [x], {"axis": total[1][0]})
    return True


def _rows(ed: Edit, node: Node) -> bool:
    """Softmax of the rows of a tensor that was reshaped for it, and is given its shape back."""
    inner = unary(ed, node.inputs[0], "Softmax", "LogSoftmax", "Hardmax")
    view = unary(ed, inner.inputs[0], "Flatten", "Reshape") if inner is not None else None
    if view is None or not ed.shapes.same_shape(view.inputs[0], node.outputs[0]):
        return False
    shapes = ed.shapes.sampled_shapes(view.inputs[0], inner.outputs[0])
    if shapes is None or inner.attrs.get("axis", -1) % len(shapes[1][0]) != len(shapes[1][0]) - 1:
        return False
    if any(not a or a[-1] != b[-1] for a, b in zip(*shapes, strict=True)):
        return False
    ed.change(node, inner.op, [view.inputs[0]], {"axis": -1})
    return True


# Mean and variance


def _normalized(ed: Edit, node: Node) -> bool:
    """(x - mean) / sqrt(variance + epsilon), or x / sqrt(mean of squares + epsilon)."""
    for centered, other in (node.inputs, node.inputs[::-1]) if node.op == "Mul" else (node.inputs,):
        inside = _deviation(ed, other, node.op)
        if inside is None or node.attrs:
            continue
        epsilon, variance = offset(ed, inside)
        if variance == inside or epsilon <= 0:
            continue
        squares = _reduced(ed, variance, "ReduceMean")
        sub = ed.producer(centered, "Sub")
        if squares is not None and _square(ed, squares[0]) == centered:
            if sub is not None and not sub.attrs:
                mean = _reduced(ed, sub.inputs[1], "ReduceMean")
                if mean is not None and mean[:2] == (sub.inputs[0], squares[1]):
                    return _replace(ed, node, sub.inputs[0], squares[1], epsilon)
            if _replace_rms(ed, node, centered, squares[1], epsilon):
                return True
        if sub is not None and not sub.attrs:
            x = sub.inputs[0]
            axes = _moments(ed, variance, x, sub.inputs[1])
            if axes is not None and _replace(ed, node, x, axes, epsilon):
                return True
    return False


def _deviation(ed: Edit, name: str, op: str) -> str | None:
    """The v of sqrt(v), for a Div, or of 1 / sqrt(v), for a Mul."""
    if op == "Div":
        root = unary(ed, name, "Sqrt")
        return root.inputs[0] if root is not None else None
    power = unary(ed, name, "Pow")
    if power is not None and ed.scalar(power.inputs[1]) == -0.5:
        return power.inputs[0]
    reciprocal = unary(ed, name, "Reciprocal")
    inner = reciprocal.inputs[0] if reciprocal is not None else None
    if inner is None:
        div = unary(ed, name, "Div")
        inner = div.inputs[1] if div is not None and ed.scalar(div.inputs[0]) == 1 else None
    root = unary(ed, inner, "Sqrt") if inner is not None else None
    return root.inputs[0] if root is not None else None


def _square(ed: Edit, name: str) -> str | None:
    """The x of x * x."""
    node = ed.producer(name, "Mul", "Pow")
    if node is None or node.attrs:
        return None
    if node.op == "Pow":
        return node.inputs[0] if ed.scalar(node.inputs[1]) == 2 else None
    return node.inputs[0] if node.inputs[0] == node.inputs[1] else None


def _moments(ed: Edit, variance: str, x: str, mean_name: str) -> tuple[int, ...] | None:
    """The axes where variance is E[x^2] - E[x]^2, or the part of it above zero."""
    clip = ed.producer(variance, "Relu")
    sub = ed.producer(clip.inputs[0] if clip is not None else variance, "Sub")
    if sub is None or sub.attrs or _square(ed, sub.inputs[1]) != mean_name:
        return None
    mean, squares = _reduced(ed, mean_name, "ReduceMean"), _reduced(ed, sub.inputs[0], "ReduceMean")
    if mean is None or squares is None or mean[:2] != (x, squares[1]) or _square(ed, squares[0]) != x:
        return None
    return mean[1]


def _replace(ed: Edit, node: Node, x: str, axes: tuple[int, ...], epsilon: float) -> bool:
    dims = ed.shapes.shape(x)
    if dims is None or not ed.shapes.same_shape(x, node.outputs[0]):
        return False
    rank = len(dims)
    spatial = rank >= 3 and axes == tuple(range(2, rank))
    if axes == tuple(range(axes[0], rank)) and not (spatial and _scaled_by_channel(ed, node, rank)):
        return _emit(ed, node, "LayerNormalization", x, dims[axes[0] :], False,
                     {"axis": axes[0] - rank, "epsilon": epsilon})  # fmt: skip
    if spatial:
        return _emit(ed, node, "InstanceNormalization", x, dims[1:2], True, {"epsilon": epsilon})
    return False


def _scaled_by_channel(ed: Edit, node: Node, rank: int) -> bool:
    """Whether what follows has a constant for each index of axis 1, as an InstanceNormalization has."""
    user = ed.only_user(node.outputs[0])
    if user is None or user.op not in ("Mul", "Add") or user.domain:
        return False
    value = ed.real(user.inputs[1 if user.inputs[0] == node.outputs[0] else 0])
    if value is None or value.size == 1 or value.ndim > rank:
        return False
    full = (1,) * (rank - value.ndim) + value.shape
    return all(d == 1 for i, d in enumerate(full) if i != 1)


def _replace_rms(ed: Edit, node: Node, x: str, axes: tuple[int, ...], epsilon: float) -> bool:
    dims = ed.shapes.shape(x)
    if dims is None or axes != tuple(range(axes[0], len(dims))) or not ed.shapes.same_shape(x, node.outputs[0]):
        return False
    attrs = {"axis": axes[0] - len(dims), "epsilon": epsilon}
    return _emit(ed, node, "RMSNormalization", x, dims[axes[0] :], False, attrs)


def _emit(ed: Edit, node: Node, op: str, x: str, dims: tuple, shift: bool, attrs: dict[str, object]) -> bool:
    """Makes a node a normalization with scale one (and shift zero, where it must have one)."""
    if find(op) is None or any(isinstance(d, str) for d in dims):
        return False
    dtype = ed.shapes.dtype(x)
    inputs = [x, ed.constant(np.ones(dims, STORAGE[dtype]), f"{node.outputs[0]}/scale", dtype)]
    if shift:
        inputs.append(ed.constant(np.zeros(dims, STORAGE[dtype]), f"{node.outputs[0]}/shift", dtype))
    ed.change(node, op, inputs, attrs)
    return True


# Groups


def _group(ed: Edit, node: Node) -> bool:
    """Reshape(InstanceNormalization(Reshape(x, [0, groups, -1]))) back to x's shape."""
    norm = unary(ed, node.inputs[0], "InstanceNormalization")
    inner = unary(ed, norm.inputs[0], "Reshape") if norm is not None else None
    if inner is None or find("GroupNormalization") is None:
        return False
    x = inner.inputs[0]
    dims, shapes = ed.shapes.shape(x), ed.shapes.sampled_shapes(x, inner.outputs[0])
    if dims is None or shapes is None or len(dims) < 3:
        return False
    if not ed.shapes.same_shape(x, node.outputs[0]):
        return False
    groups = {g[1] for g in shapes[1] if len(g) >= 3}
    scale, shift = ed.real(norm.inputs[1]), ed.real(norm.inputs[2])
    if len(groups) != 1 or scale is None or shift is None or not isinstance(dims[1], int):
        return False
    count = groups.pop()
    if dims[1] % count or any(g[0] != s[0] for s, g in zip(*shapes, strict=True)):
        return False
    each = dims[1] // count
    dtype = ed.shapes.dtype(x)
    inputs = [x, *(ed.constant(np.repeat(v, each), f"{node.outputs[0]}/{what}", dtype)
                   for v, what in ((scale, "scale"), (shift, "shift")))]  # fmt: skip
    ed.change(node, "GroupNormalization", inputs, {"num_groups": count, "epsilon": norm.attrs.get("epsilon", 1e-5)})
    return True


# Scale and shift


def _scale_and_shift(ed: Edit, node: Node) -> bool:
    """Takes a Mul and an Add behind a normalization in: the Mul while the shift is zero."""
    changed = False
    while not node.attrs.get("activation") and (user := ed.only_user(node.outputs[0])) is not None:
        if user.op not in ("Mul", "Add") or user.domain or user.attrs or len(node.outputs) > 1:
            break
        name = user.inputs[1 if user.inputs[0] == node.outputs[0] else 0]
        value = ed.real(name)
        scale = ed.real(node.inputs[1])
        shift = ed.real(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        if len(node.inputs) > 2 and node.inputs[2] and shift is None:
            break
        fitted = None if value is None or scale is None else _fit(ed, node, value, scale.shape)
        if fitted is None or not ed.shapes.same_shape(node.outputs[0], user.outputs[0]):
            break
        if user.op == "Add" and node.op == "RMSNormalization":
            break
        dtype = ed.shapes.dtype(node.inputs[0])
        inputs = list(node.inputs)
        if user.op == "Mul":
            inputs[1] = ed.constant(scale * fitted, f"{node.outputs[0]}/scale", dtype)
            if shift is not None:
                inputs[2] = ed.constant(shift * fitted, f"{node.outputs[0]}/shift", dtype)
        else:
            total = fitted if shift is None else shift + fitted
            inputs[2:] = [ed.constant(total, f"{node.outputs[0]}/shift", dtype)]
        # The user becomes the normalization, so that its place in the order holds.
        ed.change(user, node.op, inputs, node.attrs)
        node, changed = user, True
    return changed


def _fit(ed: Edit, node: Node, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A constant operand of a normalization's output, of the shape of its scale; None where it has another."""
    rank = ed.shapes.rank(node.outputs[0])
    if rank is None or value.ndim > rank:
        return None
    full = value.reshape((1,) * (rank - value.ndim) + value.shape)
    if node.op in ("LayerNormalization", "RMSNormalization"):
        axis = node.attrs.get("axis", -1) % rank
        if full.shape[:axis] != (1,) * axis or len(shape) != rank - axis:
            return None
        target = shape
        full = full.reshape(full.shape[axis:])
    else:
        if any(d != 1 for i, d in enumerate(full.shape) if i != 1):
            return None
        target, full = shape, full.reshape(-1)
    try:
        return np.ascontiguousarray(np.broadcast_to(full, target))
    except ValueError:
        return None
