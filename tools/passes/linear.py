"""What the passes that fold into weights share: Conv, ConvTranspose, Gemm and MatMul as y = W x + b."""

from __future__ import annotations

import numpy as np

from evort.graph import Node
from evort.types import STORAGE
from evort_tools.passes.edit import Edit

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Z = 3  # the index of the residual input, which all of them have
_SHARED = 1 << 16  # bytes of weights that may be kept twice because others read them too


def product_of(ed: Edit, name: str) -> Node | None:
    """The product that computes a tensor which only one node reads, and to which nothing has been fused yet but a
    bias."""
    node = ed.producer(name, *PRODUCTS)
    if node is None or not ed.single(name) or not ed.is_real(name):
        return None
    return node if not node.attrs.get("activation") and not _input(node, Z) else None


def _input(node: Node, index: int) -> str:
    return node.inputs[index] if index < len(node.inputs) else ""


def channels(ed: Edit, node: Node) -> int | None:
    """Output channels of a product: the length of axis 1 of a convolution's output, of the last axis of others."""
    dims = ed.shapes.shape(node.inputs[1])
    if dims is None or len(dims) < 2:
        return None
    if node.op == "ConvTranspose":
        count = dims[1]
        return count * node.attrs.get("group", 1) if isinstance(count, int) else None
    if node.op == "Gemm":
        count = dims[0 if node.attrs.get("transB", 0) else 1]
    else:
        count = dims[0] if node.op == "Conv" else dims[-1]
    return count if isinstance(count, int) else None


def per_channel(value: np.ndarray, count: int, axis: int, rank: int | None) -> np.ndarray | None:
    """A constant operand as one float64 number for each channel, where it is such; None otherwise.

    axis: that of the channels in a tensor of that rank (negative axes need no rank).
    """
    if value.size == 1:
        fits = value.ndim == 0 or (rank is not None and value.ndim <= rank)
        return np.full(count, value.reshape(-1)[0], np.float64) if fits else None
    if axis >= 0:
        if rank is None:
            return None
        axis -= rank
    if value.ndim < -axis or (rank is not None and value.ndim > rank) or (rank is None and value.ndim > -axis):
        return None
    others = [d for i, d in enumerate(value.shape) if i - value.ndim != axis]
    if value.shape[axis] != count or any(d != 1 for d in others):
        return None
    return value.reshape(-1).astype(np.float64)


def output_vector(ed: Edit, node: Node, name: str) -> np.ndarray | None:
    """A constant operand of a product's output, one number for each channel."""
    value, count = ed.real(name), channels(ed, node)
    if value is None or count is None:
        return None
    convolution = node.op in ("Conv", "ConvTranspose")
    rank = len(ed.shapes.shape(node.inputs[1])) if convolution else ed.shapes.rank(node.outputs[0])
    return per_channel(value, count, 1 if convolution else -1, rank)


def weights(ed: Edit, node: Node) -> np.ndarray | None:
    """The constant weights of a product, if they may be replaced."""
    value = ed.real(node.inputs[1])
    if value is None or value.ndim < 2 or (node.op == "MatMul" and value.ndim != 2):
        return None
    shared = len(ed.users(node.inputs[1])) > 1 and value.nbytes > _SHARED
    return None if shared else value


def bias(ed: Edit, node: Node) -> np.ndarray | None:
    """A product's constant bias as float64, zeros where it has none; None where it is not constant.

    That of Gemm is multiplied with beta, and may have rows.
    """
    name = _input(node, 2)
    count = channels(ed, node)
    if count is None:
        return None
    if not name:
        return np.zeros(count)
    value = ed.real(name)
    if value is None:
        return None
    value = value.astype(np.float64) * (node.attrs.get("beta", 1.0) if node.op == "Gemm" else 1.0)
    return np.broadcast_to(value, (*value.shape[:-1], count)) if value.ndim else np.full(count, float(value))


def scaled_outputs(node: Node, w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Weights with each output channel multiplied."""
    w = w.astype(np.float64)
    if node.op == "Conv":
        return w * scale.reshape(-1, *(1,) * (w.ndim - 1))
    if node.op == "ConvTranspose":
        group = node.attrs.get("group", 1)
        parts = w.reshape(group, w.shape[0] // group, *w.shape[1:])
        return (parts * scale.reshape(group, 1, -1, *(1,) * (w.ndim - 2))).reshape(w.shape)
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        return w * scale[:, None]
    return w * scale


def scaled_inputs(node: Node, w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Weights with each input channel multiplied."""
    w = w.astype(np.float64)
    if node.op == "Conv":
        group = node.attrs.get("group", 1)
        parts = w.reshape(group, w.shape[0] // group, *w.shape[1:])
        return (parts * scale.reshape(group, 1, -1, *(1,) * (w.ndim - 2))).reshape(w.shape)
    if node.op == "ConvTranspose":
        return w * scale.reshape(-1, *(1,) * (w.ndim - 1))
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        return w * scale
    return w * scale[:, None]


def input_channels(ed: Edit, node: Node, w: np.ndarray) -> int:
    if node.op == "Conv":
        return w.shape[1] * node.attrs.get("group", 1)
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        return w.shape[1]
    return w.shape[0]


def replace(ed: Edit, node: Node, w: np.ndarray | None = None, b: np.ndarray | None = None) -> bool:
    """Gives a product new weights, a new bias or both, in the old ones' type. False where numbers would overflow."""
    dtype = ed.shapes.dtype(node.outputs[0])
    storage = ed.value(node.inputs[1]).dtype if ed.value(node.inputs[1]) is not None else None
    found = []
    for value in (w, b):
        if value is None:
            found.append(None)
            continue
        with np.errstate(over="ignore"):
            stored = value.astype(storage if storage is not None else STORAGE[dtype])
        if not np.isfinite(stored).all():
            return False
        found.append(stored)
    inputs = [*node.inputs, *[""] * (3 - len(node.inputs))]
    if found[0] is not None:
        inputs[1] = ed.constant(found[0], f"{node.outputs[0]}/weights", dtype)
    if found[1] is not None:
        inputs[2] = ed.constant(found[1], f"{node.outputs[0]}/bias", dtype)
    attrs = dict(node.attrs)
    if found[1] is not None:
        attrs.pop("beta", None)
    ed.change(node, node.op, inputs, attrs)
    return True
